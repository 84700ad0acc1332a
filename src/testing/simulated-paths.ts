/** Paths of a simulated disk taken apart. The same few are asked for again and again, so they are remembered. */

const remembered = new Map<string, readonly string[]>();
const rememberedMax = 10_000;

/** Names from the root on, without empty ones and `.`. */
export function namesOf(path: string): readonly string[] {
  let names = remembered.get(path);
  if (names === undefined) {
    names = path.split("/").filter((name) => name !== "" && name !== ".");
    if (remembered.size >= rememberedMax) remembered.clear();
    remembered.set(path, names);
  }
  return names;
}
