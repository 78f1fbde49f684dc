/** What lies under the things: the sea, a few avenues, a grid of degrees. No tiles: nothing leaves this server. */

import coast from "./coast.json";

export interface Line {
  name: string;
  /** 1 for the great avenues, 2 for ring roads. */
  rank: 1 | 2;
  points: [number, number][];
}

export const SEA = coast as unknown as GeoJSON.FeatureCollection<GeoJSON.Polygon>;

export const CREDIT = "Sea © OpenStreetMap contributors · avenues sketched by hand";

/** Barcelona's avenues, drawn by hand to find one's way by. They are not surveyed. */
export const AVENUES: Line[] = [
  { name: "Avinguda Diagonal", rank: 1, points: [[2.1, 41.3811], [2.1113, 41.384], [2.1178, 41.3857], [2.1262, 41.3879], [2.1437, 41.3925], [2.1597, 41.3966], [2.187, 41.4036], [2.2166, 41.411]] },
  { name: "Gran Via", rank: 1, points: [[2.112, 41.3565], [2.1322, 41.3662], [2.1489, 41.3751], [2.1641, 41.3862], [2.1757, 41.3946], [2.187, 41.4036], [2.2068, 41.4178], [2.2302, 41.4338]] },
  { name: "Avinguda Meridiana", rank: 1, points: [[2.1838, 41.3908], [2.187, 41.4036], [2.1868, 41.411], [2.1857, 41.4216], [2.1832, 41.4296], [2.188, 41.4405], [2.1895, 41.4497]] },
  { name: "Paral·lel", rank: 1, points: [[2.1489, 41.3751], [2.1776, 41.3757]] },
  { name: "Passeig de Gràcia", rank: 1, points: [[2.17, 41.3874], [2.1597, 41.3966], [2.1571, 41.3995]] },
  { name: "La Rambla", rank: 1, points: [[2.17, 41.3866], [2.1735, 41.3816], [2.1776, 41.3757]] },
  { name: "Passeig de Sant Joan", rank: 1, points: [[2.1812, 41.3911], [2.1757, 41.3946], [2.1683, 41.3988]] },
  { name: "Carrer d’Aragó", rank: 1, points: [[2.1452, 41.3793], [2.1667, 41.3921], [2.1869, 41.4077]] },
  { name: "Ronda de Dalt", rank: 2, points: [[2.1, 41.3811], [2.1045, 41.3886], [2.1148, 41.3976], [2.1253, 41.4075], [2.1369, 41.4195], [2.1484, 41.4284], [2.1633, 41.4376], [2.1765, 41.4425], [2.1895, 41.4497]] },
  { name: "Ronda Litoral", rank: 2, points: [[2.139, 41.3455], [2.1561, 41.3531], [2.1672, 41.3632], [2.1762, 41.3741], [2.1846, 41.3806], [2.1957, 41.3889], [2.2073, 41.399], [2.2189, 41.4093], [2.2172, 41.419], [2.2036, 41.4345], [2.1895, 41.4497]] },
];

/** Meridians and parallels of a view, at a step that gives some six of them. */
export function graticule(west: number, south: number, east: number, north: number): [number, number][][] {
  const wanted = Math.max(east - west, 1e-6) / 6;
  const step = [10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002].findLast((one) => one >= wanted) ?? 20;
  const lines: [number, number][][] = [];
  for (let x = Math.floor(west / step) * step; x <= east + step; x += step) {
    lines.push([[x, Math.max(-85, south - step)], [x, Math.min(85, north + step)]]);
  }
  for (let y = Math.max(-80, Math.floor(south / step) * step); y <= Math.min(85, north + step); y += step) {
    lines.push([[west - step, y], [east + step, y]]);
  }
  return lines;
}
