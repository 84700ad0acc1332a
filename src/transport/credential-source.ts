/** Where a key and its certificate come from. */
import type { CredentialWatch } from "./credential-watch.ts";
import type { Credentials } from "./credentials.ts";

/** A pair as it is, or one that follows its files. */
export type CredentialSource = Credentials | CredentialWatch;

export function currentOf(source: CredentialSource): Credentials {
  return "current" in source ? source.current : source;
}
