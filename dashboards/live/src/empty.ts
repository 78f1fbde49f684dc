/** A city without things yet: how to make the first one. */

import { byId, h } from "./dom.ts";

const DESCRIPTOR = {
  name: "My first thing",
  description: "A thermometer on my desk",
  properties: { key: "my-first-thing" },
  Locations: [
    {
      name: "Desk", description: "Where it stands", encodingType: "application/geo+json",
      location: { type: "Point", coordinates: [2.1734, 41.3851] },
    },
  ],
  Datastreams: [
    {
      name: "Temperature", description: "Air temperature at my desk",
      observationType: "http://www.opengis.net/def/observationType/OGC-OM/2.0/OM_Measurement",
      unitOfMeasurement: { name: "degree Celsius", symbol: "°C", definition: "ucum:Cel" },
      properties: { streamName: "my-gateway/temperature", interval: "PT1M" },
      Sensor: { name: "Thermometer", description: "By hand", encodingType: "text/plain", metadata: "none" },
      ObservedProperty: {
        name: "Temperature", definition: "http://qudt.org/vocab/quantitykind/Temperature", description: "Of the air",
      },
    },
  ],
};

/** Fill the invitation; `broker` is the address that the platform gives, such as mqtt://127.0.0.1:1883. */
export function invite(broker: string | null): void {
  const address = /^mqtts?:\/\/([^:/]+)(?::(\d+))?/.exec(broker ?? "");
  const to = `mosquitto_pub -h ${address?.[1] ?? "127.0.0.1"} -p ${address?.[2] ?? "1883"} -q 1`;
  const topic = "citylab/v1/gateways/my-gateway";
  const lines = [
    ["1", "Say what it is", `${to} -r -t ${topic}/descriptor -m '${JSON.stringify(DESCRIPTOR)}'`],
    ["2", "Send a value", `${to} -t ${topic}/packs -m '[{"n":"my-gateway/temperature","v":21.4}]'`],
  ] as const;
  const steps = byId("first-steps");
  if (steps.dataset["broker"] === String(broker)) return;
  steps.dataset["broker"] = String(broker);
  steps.replaceChildren(
    ...lines.map(([, title, line]) => {
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
