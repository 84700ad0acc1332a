/** Searching in what is sorted. */

/** The first index below `count` of which something is true that is true of all behind it as well; `count`: of none. */
export function firstFrom(count: number, isTrue: (index: number) => boolean): number {
  let low = 0;
  let high = count;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (isTrue(middle)) high = middle;
    else low = middle + 1;
  }
  return low;
}
