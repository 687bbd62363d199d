// What an alias means, in words.

/** @param {{targets: any[], router?: any}} alias */
export function meaning({ targets, router }) {
  if (router) return `chosen by content among ${router.candidates.join(", ")}, otherwise ${router.otherwise}`;
  const total = targets.reduce((sum, target) => sum + target.weight, 0) || 1;
  return targets.map(({ model, weight }) => (targets.length > 1 ? `${Math.round((weight / total) * 1000) / 10} % ${model}` : model)).join(", ");
}
