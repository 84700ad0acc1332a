/** What a `commit` says of the point it asks for. Pure. */
import { isDiskName } from "../base/disk-name.ts";
import { ReplicationError } from "../base/errors.ts";
import type { CommitFacts, Cut } from "../replica/store.ts";
import type { Commit } from "../wire/messages.ts";

/** Throws `protocol-violation` for a cut that does not have the disk as a member, or has members that cannot be disks. */
export function factsOf(commit: Commit, disk: string): Omit<CommitFacts, "source" | "sourceName"> {
  const { time, label, consistency, cycle } = commit;
  return { time, label, consistency, cycle, cut: cutOf(commit, disk) };
}

function cutOf({ group, members }: Commit, disk: string): Cut | undefined {
  if (group === undefined || members === undefined) return undefined;
  const sound = members.includes(disk) && members.every(isDiskName) && new Set(members).size === members.length;
  if (!sound) throw new ReplicationError("protocol-violation", `disk ${disk}: its commit is of a cut of other disks`);
  return { id: group, members };
}
