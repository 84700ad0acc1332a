/** Images by what users call them: a path, or an address with a scheme. */
import { resolve } from "node:path";
import type { Clock } from "../base/clock.ts";
import { ReplicationError } from "../base/errors.ts";
import type { Logger } from "../base/logger.ts";
import type { BlockReader } from "../image/block-device.ts";
import type { ImageGuard } from "../image/guard.ts";
import { openImage } from "../image/open-image.ts";
import { formatNbdUri, isNbdUri, type NbdAddress, parseNbdUri } from "../nbd/nbd-uri.ts";
import type { DirtyRange } from "../nbd/client.ts";
import type { Storage } from "../storage/seam.ts";
import type { CredentialSource } from "../transport/credential-source.ts";

export interface LocationOptions {
  readonly storage: Storage;
  readonly clock: Clock;
  readonly log: Logger;
  /** Read the bytes as they are, whatever they look like; for paths. */
  readonly format?: "raw" | undefined;
  /** Open what changes meanwhile, at the user's word. */
  readonly allowLive?: boolean;
  /** Certificates for `nbds` addresses. */
  readonly credentials?: CredentialSource | undefined;
  /** Name of a dirty bitmap that the NBD server has for the export. */
  readonly bitmap?: string | undefined;
}

export interface OpenLocation {
  readonly reader: BlockReader;
  /** Absolute path, or canonical address: the same for the same image. */
  readonly name: string;
  /** The same for every name of the file or device; undefined: the name says it. */
  readonly identity: string | undefined;
  /** Undefined: whether the image changes cannot be told. */
  readonly guard: ImageGuard | undefined;
  /** What is wrong with the image and does no harm, in words. */
  readonly remarks: readonly string[];
  /** What the bitmap that was asked for calls dirty: ascending, within the range. */
  readonly dirtyExtents?: ((offset: number, length: number) => AsyncIterable<DirtyRange>) | undefined;
}

/** Opens what `location` names, for reading. Errors: of `openImage`, and of `openNbdReader` for `nbd://` addresses. */
export async function openLocation(location: string, options: LocationOptions): Promise<OpenLocation> {
  if (isNbdUri(location)) return await openNbd(absolute(parseNbdUri(location)), options);
  const scheme = /^([a-z][a-z0-9+]+):\/\//.exec(location)?.[1];
  if (scheme !== undefined) {
    throw new ReplicationError(
      "image-format-unsupported",
      `${location}: images over ${scheme} are not supported by this version; nbd, nbds and nbd+unix are`,
    );
  }
  const { storage, clock, format, allowLive = false, bitmap } = options;
  if (bitmap !== undefined) {
    throw new ReplicationError("usage", `${location}: only NBD servers have dirty bitmaps, and it is no nbd address`);
  }
  const image = await openImage(location, { storage, clock, format, allowLive });
  return { ...image, name: image.path };
}

/** What {@link openLocation} calls the image that `location` names, without looking at it. */
export function nameOfLocation(location: string): string {
  return isNbdUri(location) ? formatNbdUri(absolute(parseNbdUri(location))) : resolve(location);
}

function absolute(address: NbdAddress): NbdAddress {
  const { place } = address;
  return place.kind === "unix" ? { ...address, place: { kind: "unix", path: resolve(place.path) } } : address;
}

async function openNbd(address: NbdAddress, options: LocationOptions): Promise<OpenLocation> {
  const { clock, log, credentials, allowLive = false, bitmap } = options;
  // Loaded when it is asked for: most images are files.
  const { openNbdReader } = await import("../nbd/client.ts");
  const context = bitmap === undefined ? undefined : `qemu:dirty-bitmap:${bitmap}`;
  const contexts = context === undefined ? [] : [context];
  const reader = await openNbdReader({ address, clock, log, credentials, contexts });
  const { name } = reader;
  if (context !== undefined && !reader.contexts.includes(context)) {
    await reader.close();
    throw new ReplicationError(
      "image-not-found",
      `${name}: the server has no dirty bitmap ${bitmap} for it (qemu-nbd --bitmap=${bitmap}; bitmaps of block-export-add)`,
    );
  }
  const live = `${name}: the server lets clients write to it. Should one do so meanwhile, the copy is of no single moment: serve it read-only, or a snapshot`;
  return {
    ...{ reader, name, identity: undefined, guard: undefined },
    remarks: reader.isReadOnly || allowLive ? [] : [live],
    dirtyExtents: context === undefined ? undefined : (offset, length) => reader.dirtyExtents(context, offset, length),
  };
}
