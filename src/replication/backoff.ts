/** Waits between attempts: 1, 2, 4, 8, 10, then 30 s each. Pure. */
const waits = [1_000, 2_000, 4_000, 8_000, 10_000] as const;

/** Milliseconds to wait after `failures` attempts in a row that made no progress (at least 1). */
export function backoffMillis(failures: number): number {
  return waits[failures - 1] ?? 30_000;
}
