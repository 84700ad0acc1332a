/**
 * Which of the points' times to believe. A point's place is its sequence number; its time is a label that the sender's clock wrote, and
 * clocks jump. Times that contradict the sequence are in doubt, and get a time from their neighbours for as long as they are judged by age.
 */

export interface BelievedTimes {
  /** False: in doubt. */
  readonly isTrusted: readonly boolean[];
  /** Milliseconds since 1970 UTC, never falling; the label itself where it is trusted. */
  readonly times: readonly number[];
}

/**
 * The largest set of labels that do not fall along the sequence. Of several the one that spans least: it ends with the lowest label, and
 * goes back from each label to the highest possible. So one point from 2006 or from 2099 among others is the one in doubt.
 * @param labels by ascending sequence number.
 */
function trustedLabels(labels: readonly number[]): boolean[] {
  const labelAt = (index: number | undefined): number =>
    index === undefined ? Number.NaN : (labels[index] ?? Number.NaN);
  // piles[n]: where the labels stand with which a longest never falling selection of n + 1 can end. Within a pile labels fall.
  const piles: number[][] = [];
  for (const [index, label] of labels.entries()) {
    const place = firstWhere(piles.length, (pile) => labelAt(piles[pile]?.at(-1)) > label);
    const pile = piles[place];
    if (pile === undefined) piles.push([index]);
    else pile.push(index);
  }
  const isTrusted = labels.map(() => false);
  let chosen = piles.at(-1)?.at(-1);
  for (let place = piles.length - 1; place >= 0 && chosen !== undefined; place--) {
    isTrusted[chosen] = true;
    const pile = piles[place - 1] ?? [];
    const bound = labelAt(chosen);
    chosen = pile[firstWhere(pile.length, (at) => labelAt(pile[at]) <= bound)];
  }
  return isTrusted;
}

/** The first of `count` indexes for which `holds` is true, when it is true for all behind it as well; `count`: for none. */
function firstWhere(count: number, holds: (index: number) => boolean): number {
  let low = 0;
  let high = count;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (holds(middle)) high = middle;
    else low = middle + 1;
  }
  return low;
}

/**
 * A run of labels in doubt ends at the trusted time behind it and goes back from there by its own forward steps, but not beyond the
 * trusted time before it: points that share a wrong clock keep their distances. Without a trusted point behind, the one before counts.
 * @param labels by ascending sequence number.
 */
export function believeTimes(labels: readonly number[]): BelievedTimes {
  const isTrusted = trustedLabels(labels);
  const lowest: number[] = [];
  let floor = Number.NEGATIVE_INFINITY;
  for (const [index, label] of labels.entries()) {
    if (isTrusted[index] === true) floor = label;
    lowest.push(floor);
  }
  const times = [...labels];
  let next = lowest.at(-1) ?? 0;
  for (let index = labels.length - 1; index >= 0; index--) {
    const label = labels[index] ?? 0;
    if (isTrusted[index] === true) {
      next = label;
      continue;
    }
    const behind = labels[index + 1];
    const step = behind === undefined || isTrusted[index + 1] === true ? 0 : Math.max(0, behind - label);
    next = Math.max(lowest[index] ?? 0, next - step);
    times[index] = next;
  }
  return { isTrusted, times };
}

/**
 * The last trusted point before a leap in time of more than `longest` that is not confirmed yet: no more trusted points stand behind it
 * than before it. Undefined: none. Believing such a leap would end all history before it for the sake of one clock that went wrong.
 */
export function unconfirmedLeap(
  labels: readonly number[],
  isTrusted: readonly boolean[],
  longest: number,
): number | undefined {
  const trusted = [...labels.keys()].filter((index) => isTrusted[index] === true);
  for (let count = 1; count < trusted.length; count++) {
    const last = trusted[count - 1] ?? 0;
    const leap = (labels[trusted[count] ?? 0] ?? 0) - (labels[last] ?? 0);
    if (leap > longest && trusted.length - count <= count) return last;
  }
  return undefined;
}
