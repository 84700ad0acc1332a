/** Certificates of this side for images behind `nbds` addresses. */
import type { Credentials } from "../transport/credentials.ts";

/** `directory`: what `--nbd-tls` says; undefined: not given. */
export async function nbdCredentials(directory: string | undefined): Promise<Credentials | undefined> {
  if (directory === undefined) return undefined;
  const { loadCredentials } = await import("../transport/credentials.ts");
  return await loadCredentials(directory);
}
