/** End of the blocks from `start` on that follow one another, ascending by one; at most `most` of them. */
export function neighboursEnd(
  blocks: readonly number[],
  start: number,
  most: number = Number.POSITIVE_INFINITY,
): number {
  const first = blocks[start] ?? 0;
  let end = start + 1;
  while (end - start < most && blocks[end] === first + end - start) end++;
  return end;
}
