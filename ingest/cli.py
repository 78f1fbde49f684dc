"""`citylab ingest`: the bridge as a process."""

from citylab import wiring
from citylab.cli import Data, run, single
from citylab.settings import Settings
from ingest.bridge import NUMBERED_SUBSCRIPTIONS, Bridge, Limits, unnumbered_subscriptions
from ingest.quotas import Quota


async def serve(settings: Settings) -> None:
    """Bridge until cancelled."""
    numbered = wiring.broker_connection(
        settings,
        client_id=f"citylab-bridge-{settings.bridge_name}-numbered",
        keep_alive=10,
        subscriptions=NUMBERED_SUBSCRIPTIONS,
    )
    unnumbered = wiring.broker_connection(
        settings,
        client_id=f"citylab-bridge-{settings.bridge_name}",
        clean_session=False,
        subscriptions=unnumbered_subscriptions(settings.bridge_name, embedded=settings.embedded_broker),
    )
    async with wiring.opened(wiring.event_log(settings)) as log:
        quota = Quota(
            settings.quota_bytes, max(settings.quota_bytes * settings.quota_seconds, settings.pack_bytes)
        )
        limits = Limits(most_bytes=settings.pack_bytes, quota=quota)
        await Bridge(numbered, unnumbered, log, name=settings.bridge_name, limits=limits).run()


def ingest(data: Data = None) -> None:
    """Run the bridge: it appends what gateways publish to the event log, and acknowledges what the log has.

    Waits for a broker or a log that is not there. Several bridges share the load; each has its own
    CITYLAB_BRIDGE_NAME.
    """
    run("ingest", serve, data=data)


app = single(ingest)
