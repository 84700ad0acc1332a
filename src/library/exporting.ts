/** Serves recovery points over NBD. */
import type { Clock } from "../base/clock.ts";
import { ReplicationError } from "../base/errors.ts";
import type { Logger } from "../base/logger.ts";
import type { Random } from "../base/random.ts";
import { formatNbdUri, type NbdPlace } from "../nbd/nbd-uri.ts";
import { listenNbd } from "../nbd/server.ts";
import type { Point, Store } from "../replica/store.ts";
import type { Storage } from "../storage/seam.ts";
import type { CredentialSource } from "../transport/credential-source.ts";
import { isLoopback } from "../transport/names.ts";

export interface ExportedPoint {
  readonly point: Point;
  /** For clients. */
  readonly uri: string;
  /** Clients that are connected. */
  readonly connections: number;
  /** Ends what clients have under way, then lets go of the point. */
  close(): Promise<void>;
}

/**
 * Serves a point read-only to any NBD client, beside whatever is being done to its disk: it stays in use, and is not removed, until `close` has resolved. Every block is
 * compared with its digest before it is served; a damaged one is an I/O error for the client, with a line in the log. Answers to the disk's name and to the empty one.
 *
 * Errors: `usage` for an address that is not this machine's own without `credentials`; `disk-not-found`, `point-not-found`, `store-damaged`, `listen-failed`.
 */
export async function exportPoint(
  store: Store,
  options: {
    readonly engine: {
      readonly storage: Storage;
      readonly clock: Clock;
      readonly random: Random;
      readonly log: Logger;
    };
    readonly disk: string;
    readonly point: number | "newest";
    /** Port 0 picks a free one. */
    readonly place: NbdPlace;
    /** TLS with certificates on both sides. */
    readonly credentials?: CredentialSource | undefined;
  },
): Promise<ExportedPoint> {
  const { engine, disk, place, credentials } = options;
  checkServed(place, credentials);
  const image = await store.openPoint(disk, options.point);
  try {
    const { storage, clock, random, log } = engine;
    const description = `point ${image.point.point} of ${disk}, ${new Date(image.point.time).toISOString()}`;
    const listener = await listenNbd({
      ...{ storage, clock, random, log, credentials, place },
      exports: [{ name: disk, description, image, writable: false }],
    });
    return {
      point: image.point,
      uri: formatNbdUri({ tls: credentials !== undefined, place: listener.place, exportName: disk }),
      get connections() {
        return listener.connections;
      },
      async close() {
        await listener.close();
        await image.close();
      },
    };
  } catch (error) {
    await image.close();
    throw error;
  }
}

/** Images are served in plain to this machine alone. Throws `usage`. */
export function checkServed(place: NbdPlace, credentials: CredentialSource | undefined): void {
  if (credentials !== undefined || place.kind !== "tcp" || isLoopback(place.host)) return;
  throw new ReplicationError(
    "usage",
    `${place.host} is reached from other machines, which must show certificates: give --tls DIR/NAME (track: --nbd-tls), or serve on 127.0.0.1 or a unix socket`,
  );
}
