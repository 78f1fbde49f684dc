"""What holds for MultiDatastreams alone (OGC 18-088 §13): sizes that agree, and ObservedProperties in an order."""

from collections.abc import Sequence

import msgspec

from citylab.errors import Rejected
from citylab.model import Reason
from citylab.ports import Transaction

_elements = msgspec.json.Decoder(list[msgspec.Raw])
_SIZE = "jsonb_array_length(unit_of_measurements)"


async def rank(transaction: Transaction, own: int, properties: Sequence[int]) -> None:
    """Make these the ObservedProperties of a MultiDatastream, in their order; one may come twice."""
    await transaction.execute(
        "DELETE FROM multi_datastreams_observed_properties WHERE multi_datastream_id = %s", (own,)
    )
    await transaction.execute(
        "INSERT INTO multi_datastreams_observed_properties (multi_datastream_id, observed_property_id, rank)"
        " SELECT %s, p, i - 1 FROM unnest(%s::int8[]) WITH ORDINALITY AS u (p, i)",
        (own, list(properties)),
    )


async def size(transaction: Transaction, own: int) -> int:
    """How many elements a result of a MultiDatastream has."""
    ((found,),) = await transaction.fetch(f"SELECT {_SIZE} FROM multi_datastreams WHERE id = %s", (own,))
    return int(found)


async def check_sizes(transaction: Transaction, own: int, *, before: int | None = None) -> None:
    """Raise `Rejected` unless a MultiDatastream has a unit and a type for each of its ObservedProperties.

    before: how many there were before a change: they stay as many as the results that are stored have elements.
    """
    ((units, types, properties, observations),) = await transaction.fetch(
        f"SELECT {_SIZE}, jsonb_array_length(multi_observation_data_types),"
        " (SELECT count(*) FROM multi_datastreams_observed_properties WHERE multi_datastream_id = m.id),"
        " coalesce((SELECT count FROM latest WHERE datastream_id = m.id), 0) FROM multi_datastreams m WHERE id = %s",
        (own,),
    )
    if not units == types == properties:
        raise Rejected(
            Reason.MALFORMED,
            f"unitOfMeasurements has {units} elements, multiObservationDataTypes {types}, and the MultiDatastream"
            f" {properties} ObservedProperties: they must be as many",
        )
    if observations and before not in {None, units}:
        raise Rejected(
            Reason.MALFORMED,
            f"MultiDatastreams({own}) has Observations, whose results have {before} elements, not {units}",
        )


async def check_results(
    transaction: Transaction, owners: Sequence[int], results: Sequence[str | None]
) -> None:
    """Raise `Rejected` unless each result, its JSON text, is an array of the size that its MultiDatastream has."""
    rows = await transaction.fetch(
        f"SELECT id, {_SIZE} FROM multi_datastreams WHERE id = ANY(%s::int8[])", (sorted(set(owners)),)
    )
    sizes: dict[int, int] = dict(rows)
    for own, text in zip(owners, results, strict=True):
        if not text or text[0] != "[" or len(_elements.decode(text)) != sizes.get(own):
            raise Rejected(
                Reason.MALFORMED,
                f"a result in MultiDatastreams({own}) is an array of {sizes.get(own)} elements,"
                " one for each ObservedProperty",
            )


def refuse_another_property(own: int) -> Rejected:
    """Why a MultiDatastream that exists cannot be linked to one more ObservedProperty."""
    return Rejected(
        Reason.MALFORMED,
        f"MultiDatastreams({own}) has a unit for each of its ObservedProperties, and none for another:"
        " change the MultiDatastream instead",
    )
