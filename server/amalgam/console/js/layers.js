// Where the nodes of a lineage are drawn: what was made last at the right, what it was made from to the left of it.

/**
 * @typedef {{input: string, output: string, weight: any, role: string}} Edge
 * @typedef {{x: number, y: number}} Place
 */

/** Steps from the root to each node, by the longest way, so that every edge leads to the right. @param {string} root @param {Edge[]} edges */
function depths(root, edges) {
  const inputs = new Map();
  for (const edge of edges) inputs.set(edge.output, [...(inputs.get(edge.output) ?? []), edge.input]);
  const found = new Map([[root, 0]]);
  const queue = [root];
  // A version is made of older ones, so that this ends; the bound is for what a server should never say.
  for (let at = 0; at < queue.length && at < 20_000; at++) {
    const depth = (found.get(queue[at]) ?? 0) + 1;
    for (const input of inputs.get(queue[at]) ?? [])
      if ((found.get(input) ?? -1) < depth) {
        found.set(input, depth);
        queue.push(input);
      }
  }
  return found;
}

/** The mean of numbers; 0 of none. @param {number[]} numbers */
const mean = (numbers) => (numbers.length ? numbers.reduce((sum, one) => sum + one, 0) / numbers.length : 0);

/**
 * Column and row of every node, beside what it went into as far as there is room; and by which places each edge leads, so
 * that one over several columns passes between the nodes of those in the middle.
 * @param {string} root
 * @param {string[]} nodes
 * @param {Edge[]} edges of these nodes alone
 * @returns {{places: Map<string, Place>, ways: Place[][], columns: number, rows: number}}
 */
export function layered(root, nodes, edges) {
  const depth = depths(root, edges);
  const of = (node) => depth.get(node) ?? 0;
  const layers = Array.from({ length: Math.max(0, ...nodes.map(of)) + 1 }, () => /** @type {string[]} */ ([]));
  for (const node of nodes) layers[of(node)].push(node);
  const chains = edges.map(({ input, output }, number) => {
    const middle = [];
    for (let at = of(input) - 1; at > of(output); at--) {
      // A blank is in no name, so that this is none.
      middle.push(`${number} ${at}`);
      layers[at].push(`${number} ${at}`);
    }
    return [input, ...middle, output];
  });
  const right = new Map();
  for (const chain of chains) for (let at = 1; at < chain.length; at++) right.set(chain[at - 1], [...(right.get(chain[at - 1]) ?? []), chain[at]]);
  const rows = Math.max(...layers.map((layer) => layer.length));
  const places = new Map();
  layers.forEach((layer, at) => {
    const wanted = new Map(layer.map((node) => [node, mean((right.get(node) ?? []).map((one) => places.get(one).y))]));
    const above = (rows - layer.length) / 2;
    [...layer].sort((one, other) => (wanted.get(one) ?? 0) - (wanted.get(other) ?? 0)).forEach((node, row) => places.set(node, { x: layers.length - 1 - at, y: above + row }));
  });
  return { places, ways: chains.map((chain) => chain.map((one) => places.get(one))), columns: layers.length, rows };
}
