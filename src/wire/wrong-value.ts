/**
 * What is wrong with one value, in words that follow its name. Inside this folder only: the codec adds message and key.
 */
export class WrongValue extends Error {
  override readonly name = "WrongValue";
}

/** Throws {@link WrongValue}. */
export function wrong(problem: string): never {
  throw new WrongValue(problem);
}
