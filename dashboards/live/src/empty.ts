/** A city without things yet: how to make the first one. */

import { byId, h } from "./dom.ts";

/** As in the README. */
const DESCRIPTOR = {
  name: "My box",
  description: "On the balcony",
  Locations: [
    {
      name: "Balcony", description: "Third floor", encodingType: "application/geo+json",
      location: { type: "Point", coordinates: [2.1686, 41.3874] },
    },
  ],
  Datastreams: [
    {
      name: "Air temperature", description: "In the shade",
      observationType: "http://www.opengis.net/def/observationType/OGC-OM/2.0/OM_Measurement",
      unitOfMeasurement: { name: "degree Celsius", symbol: "Cel", definition: "http://qudt.org/vocab/unit/DEG_C" },
      properties: { streamName: "my-box/temperature", interval: "PT1M" },
      Sensor: {
        name: "SHT31", description: "Digital thermometer", encodingType: "text/html",
        metadata: "https://example.org/sht31",
      },
      ObservedProperty: {
        name: "Air temperature", description: "Of the outside air",
        definition: "http://qudt.org/vocab/quantitykind/Temperature",
      },
    },
  ],
};

/** Fill the invitation; `broker` is the address that the platform gives, such as mqtt://127.0.0.1:1883. */
export function invite(broker: string | null): void {
  const address = /^mqtts?:\/\/([^:/]+)(?::(\d+))?/.exec(broker ?? "");
  const [host, port] = [address?.[1] ?? "127.0.0.1", address?.[2] ?? "1883"];
  // mosquitto_pub finds a broker on its own machine by itself.
  const usual = ["127.0.0.1", "localhost"].includes(host) && port === "1883";
  const to = `mosquitto_pub${usual ? "" : ` -h ${host} -p ${port}`} -q 1`;
  const topic = "citylab/v1/gateways/my-box";
  const lines = [
    ["Say what it measures", `${to} -r -t ${topic}/descriptor -m '${JSON.stringify(DESCRIPTOR)}'`],
    ["Send a value", `${to} -t ${topic}/packs -m '[{"n": "my-box/temperature", "v": 21.4, "u": "Cel"}]'`],
  ] as const;
  const steps = byId("first-steps");
  if (steps.dataset["broker"] === String(broker)) return;
  steps.dataset["broker"] = String(broker);
  steps.replaceChildren(
    ...lines.map(([title, line]) => {
      const copy = h("button", { type: "button", class: "copy" }, "Copy");
      copy.addEventListener("click", () => {
        void navigator.clipboard.writeText(line).then(() => {
          copy.textContent = "Copied";
          setTimeout(() => (copy.textContent = "Copy"), 2_000);
        });
      });
      return h("li", {}, h("h3", {}, title), h("pre", { tabindex: "0" }, h("code", {}, line)), copy);
    }),
  );
}
