// What a count of requests says of the true share and the true time, with how certain that is.

const Z = 1.96;

/** Between which shares the true one lies with 95 % certainty, by Wilson. @param {number} hits @param {number} count @returns {[number, number]} */
export function shareBetween(hits, count) {
  const middle = hits / count + Z ** 2 / (2 * count);
  const half = Z * Math.sqrt(((hits / count) * (1 - hits / count)) / count + Z ** 2 / (4 * count ** 2));
  const scale = 1 + Z ** 2 / count;
  return [Math.max(0, (middle - half) / scale), Math.min(1, (middle + half) / scale)];
}

/**
 * Between which values the true median lies with 95 % certainty: the requests that far from the middle, by order, lie in
 * these buckets of a histogram. Of few requests that is all of them.
 * @param {[number, number][]} buckets upper bound, and how many are no larger; in order
 * @returns {[number, number] | null} null where there are none
 */
export function medianBetween(buckets) {
  const count = buckets.length ? buckets[buckets.length - 1][1] : 0;
  if (!count) return null;
  const away = (Z * Math.sqrt(count)) / 2;
  const place = (rank) => buckets.findIndex(([, below]) => below >= rank);
  const first = place(Math.max(1, Math.floor(count / 2 - away)));
  const last = place(Math.min(count, Math.ceil(count / 2 + away) + 1));
  return [first ? buckets[first - 1][0] : 0, buckets[last][0]];
}
