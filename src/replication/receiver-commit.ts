/** What a `commit` asks for: the point, when the two ends hold the same. */
import { isDiskName } from "../base/disk-name.ts";
import { ReplicationError } from "../base/errors.ts";
import type { Geometry } from "../base/units.ts";
import type { CommitFacts, Cut, DiskWriter, Point } from "../replica/store.ts";
import type { Commit, Open } from "../wire/messages.ts";
import type { SessionDisk } from "./receiver-disk.ts";

export interface CommitWork {
  readonly writer: DiskWriter;
  readonly disk: SessionDisk;
  readonly geometry: Geometry;
  readonly open: Open;
}

/** Makes the point, if one is to be made. Everything that was sent has been applied. Errors: `root-mismatch`, `protocol-violation`, of the store. */
export async function commitPoint(
  { writer, disk, geometry, open }: CommitWork,
  commit: Commit,
): Promise<{ readonly point: Point; readonly root: Uint8Array; readonly created: boolean }> {
  if (commit.sizeBytes !== geometry.sizeBytes) {
    throw new ReplicationError(
      "protocol-violation",
      `commit of ${commit.sizeBytes} bytes for a disk of ${geometry.sizeBytes}`,
    );
  }
  const { newest } = writer;
  // An earlier session may have applied what this one finds equal: only the root tells that the replica is still the newest point.
  const same = !disk.changes && newest?.root === Buffer.from(writer.table.root()).toString("hex");
  const created = !(commit.skipEmpty && same);
  if (created) await disk.begin();
  const root = checkedRoot(writer, open.disk, commit.root);
  if (!created && newest !== undefined) return { point: newest, root, created };
  const point = await writer.commit({
    ...factsOf(commit, open.disk),
    source: open.source,
    sourceName: open.sourceName,
  });
  return { point, root, created };
}

/** Throws `root-mismatch`. */
export function checkedRoot({ table }: DiskWriter, disk: string, expected: Uint8Array): Uint8Array {
  const root = table.root();
  if (Buffer.compare(root, expected) === 0) return root;
  throw new ReplicationError(
    "root-mismatch",
    `disk ${disk}: the two ends' digest tables differ after the delta; nothing was committed`,
  );
}

/** Throws `protocol-violation` for a cut that does not have the disk as a member, or has members that cannot be disks. */
function factsOf(commit: Commit, disk: string): Omit<CommitFacts, "source" | "sourceName"> {
  const { time, label, consistency, cycle } = commit;
  return { time, label, consistency, cycle, cut: cutOf(commit, disk) };
}

function cutOf({ group, members }: Commit, disk: string): Cut | undefined {
  if (group === undefined || members === undefined) return undefined;
  const sound = members.includes(disk) && members.every(isDiskName) && new Set(members).size === members.length;
  if (!sound) throw new ReplicationError("protocol-violation", `disk ${disk}: its commit is of a cut of other disks`);
  return { id: group, members };
}
