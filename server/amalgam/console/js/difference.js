// Which tokens of an answer another answer does not have in the same order.

const MOST_CELLS = 400_000;

/**
 * Places in ``one`` that are in no longest common run of both.
 * @param {string[]} one
 * @param {string[]} other
 * @returns {Set<number>}
 */
export function differing(one, other) {
  let head = 0;
  while (head < one.length && head < other.length && one[head] === other[head]) head++;
  const [left, right] = [one.slice(head), other.slice(head)];
  const found = new Set(left.map((_, at) => head + at));
  // Of very long answers whatever stands behind the first difference is marked.
  if (!left.length || !right.length || left.length * right.length > MOST_CELLS) return found;
  const wide = right.length + 1;
  /** Longest common run of what is left of both, by place. */
  const runs = new Uint16Array((left.length + 1) * wide);
  for (let i = left.length - 1; i >= 0; i--)
    for (let j = right.length - 1; j >= 0; j--)
      runs[i * wide + j] = left[i] === right[j] ? runs[(i + 1) * wide + j + 1] + 1 : Math.max(runs[(i + 1) * wide + j], runs[i * wide + j + 1]);
  for (let i = 0, j = 0; i < left.length && j < right.length; ) {
    if (left[i] === right[j]) {
      found.delete(head + i);
      i++;
      j++;
    } else if (runs[(i + 1) * wide + j] >= runs[i * wide + j + 1]) i++;
    else j++;
  }
  return found;
}
