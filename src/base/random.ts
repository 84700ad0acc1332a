/** Chance as a parameter. */
import { randomBytes, randomUUID } from "node:crypto";

export interface Random {
  uuid(): string;
  /** `count` random bytes; the caller owns them. */
  bytes(count: number): Uint8Array;
}

export const systemRandom: Random = {
  uuid: () => randomUUID(),
  bytes: (count) => randomBytes(count),
};
