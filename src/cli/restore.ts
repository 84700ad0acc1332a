import { resolve } from "node:path";
import { systemClock } from "../base/clock.ts";
import { restorePoint, type RestoreReport } from "../library/points.ts";
import { parseArguments } from "./arguments.ts";
import { exitCodes } from "./exit-codes.ts";
import { openStoreOf, storeFlags, storeHelp, storeOptions } from "./open-store.ts";
import { parseDiskPoint, pointHelp, withChosenPoint } from "./point-name.ts";
import { showWork, type Work } from "./progress.ts";
import { formatSize, formatTime, parseWord } from "./values.ts";
import type { Verb } from "./verb.ts";

const help = `usage: replicate restore --store DIR DISK[@POINT] OUT [--force] [options]

Writes a recovery point to OUT, a new image file or a block device, beside a live recv. A file is written as OUT.part and
gets its name when it is complete and synced; what is zero takes no space. Every block is compared with its digest, and the
whole with the point's root: what has the name OUT is the point.

${pointHelp}

  --salvage              of a damaged point, when no good one is left: zeros in place of the blocks that cannot be told any more, which are
                         listed (20 ranges of them), or all that is there where it is not known which block is damaged; the exit
                         code is 3 then
  --force                replace a file that exists; write over a block device
  --format raw|vhdx      what is written to a file: a raw image (default), or a dynamic VHDX; other formats are made from it, with
                         qemu-img convert
${storeHelp}

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the point is damaged (replicate verify says where;
--salvage writes the rest), 4 OUT exists, 130 interrupted.

Example:
  replicate restore --store /srv/replicas web@2026-11-25T05:00Z /var/lib/libvirt/images/web.raw
`;

export const restoreVerb: Verb = {
  help,
  exitCodes: { "store-damaged": exitCodes.differs, "replica-unreadable": exitCodes.differs },
  async run(args, io) {
    const given = parseArguments(args, {
      verb: "restore",
      flags: ["force", "salvage", ...storeFlags],
      options: ["format", ...storeOptions],
      positionals: ["DISK[@POINT]", "OUT"],
    });
    const [name = "", out = ""] = given.positionals;
    const { disk, point } = parseDiskPoint(name, "restore");
    const format = parseWord(given.text("format") ?? "raw", "--format", ["raw", "vhdx"]);
    const json = given.flag("json");
    const { store, engine } = await openStoreOf(given, "restore", io);
    const startedAt = systemClock.monotonic();
    const work: Work = { title: `restoring ${name}`, facts: { disk }, doneBytes: 0, totalBytes: 0 };
    const stop = showWork(work, io, { json });
    try {
      const restored = await withChosenPoint(store, disk, point, (sequence) =>
        restorePoint(store, {
          engine,
          disk,
          point: sequence,
          target: resolve(io.cwd, out),
          format,
          overwrite: given.flag("force"),
          salvage: given.flag("salvage"),
          signal: io.signal,
          onProgress(doneBytes, totalBytes) {
            work.doneBytes = doneBytes;
            work.totalBytes = totalBytes;
          },
        }),
      );
      stop();
      const seconds = (systemClock.monotonic() - startedAt) / 1000;
      const { point: found, writtenBytes, lost, lostRanges, lostBytes, rootMatches } = restored;
      if (json) {
        const event = {
          event: "done",
          disk,
          point: found.point,
          root: found.root,
          bytes: found.sizeBytes,
          bytesWritten: writtenBytes,
          ...(lostRanges === 0 ? {} : { bytesLost: lostBytes, rangesLost: lostRanges, ranges: lost }),
          ...(rootMatches ? {} : { rootMatches }),
          seconds: Number(seconds.toFixed(3)),
        };
        io.out(`${JSON.stringify(event)}\n`);
      } else {
        const rate = formatSize(writtenBytes / Math.max(seconds, 0.001));
        io.out(
          `${disk}: point ${found.point} of ${formatTime(found.time)} is in ${out}: ${formatSize(found.sizeBytes)}, ` +
            `${formatSize(writtenBytes)} of it data, in ${seconds.toFixed(1)} s, ${rate}/s\n`,
        );
        if (lostRanges > 0) io.out(lostText(restored));
        else if (!rootMatches)
          io.out("some block of it is not as it was when the point was made, and it is not known which\n");
        if (found.consistency === "none") io.err("the image changed while this point was made: it is inconsistent\n");
      }
      return rootMatches ? exitCodes.done : exitCodes.differs;
    } finally {
      stop();
      await store.close();
    }
  },
};

function lostText({ lost, lostRanges, lostBytes }: RestoreReport): string {
  const lines = lost.map(({ offset, length, reason }) => `  at ${offset}, ${length} bytes: ${reason}\n`);
  const more = lostRanges > lost.length ? `  and ${lostRanges - lost.length} more\n` : "";
  return `zeros in place of ${formatSize(lostBytes)} that cannot be told any more:\n${lines.join("")}${more}`;
}
