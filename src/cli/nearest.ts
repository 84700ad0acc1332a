/** What was most likely meant by a word that is not known. Pure. */

/** The known word that is the fewest single changes (a letter more, less, another, or two exchanged) away; undefined: none within a third of its letters. */
export function nearest(word: string, known: readonly string[]): string | undefined {
  let found: string | undefined;
  let least = Infinity;
  for (const candidate of known) {
    const changes = changesBetween(word, candidate);
    if (changes < least && 3 * changes <= candidate.length) [found, least] = [candidate, changes];
  }
  return found;
}

function changesBetween(from: string, to: string): number {
  let before: number[] = [];
  let row = Array.from({ length: to.length + 1 }, (_, column) => column);
  for (let at = 1; at <= from.length; at++) {
    const next = [at];
    for (let column = 1; column <= to.length; column++) {
      const isSame = from[at - 1] === to[column - 1];
      let least = Math.min(
        (row[column - 1] ?? 0) + (isSame ? 0 : 1),
        (row[column] ?? 0) + 1,
        (next[column - 1] ?? 0) + 1,
      );
      const isExchanged = at > 1 && column > 1 && from[at - 1] === to[column - 2] && from[at - 2] === to[column - 1];
      if (isExchanged) least = Math.min(least, (before[column - 2] ?? 0) + 1);
      next.push(least);
    }
    [before, row] = [row, next];
  }
  return row[to.length] ?? 0;
}
