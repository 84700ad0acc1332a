/**
 * Every sync of the store and every "A before B" of docs/formats.md, "Order of writes, and what a crash leaves", each as a change that takes it
 * out of the program: a sync that reports success and does nothing, a step that is done after the one it should come before.
 * edges.slow.ts shows for each that something is lost without it, or a promise broken (crash-promises.ts); where, is in order-edges.json.
 */
import { dirname } from "node:path/posix";
import type { Operation, OperationKind, SimulatedProcess } from "../../src/testing/simulated-storage.ts";
import type { Change, Step } from "./crash-scenario.ts";
import { encodeCheckpoint } from "../../src/replica/undo/format.ts";
import { overriding } from "./overriding.ts";

export interface Edge {
  readonly name: string;
  readonly change: Change;
  /** Lives in which it is met, those that show it first. Default: all. */
  readonly lives?: readonly string[];
  /** What a loss of power does to names; default `prefix`. */
  readonly entries?: "prefix" | "any";
  /** Done only for what a process finds that another one left: the crash that shows it comes before it. */
  readonly found?: true;
  /** Shown by a failed operation and not by a crash. */
  readonly failure?: true;
}

type Test = (step: Step) => boolean;

const files = {
  storeDirectory: /^\/store$/,
  store: /^\/store\/store\.json$/,
  storeNew: /^\/store\/store\.json\.new$/,
  record: /\/disk\.json$/,
  recordNew: /\/disk\.json\.new$/,
  replica: /\/replica\.raw$/,
  digests: /\/digests$/,
  pages: /\/pages$/,
  log: /\/points\/\d{10}\.undo$/,
  joined: /\/points\/\d{10}\.\d+\.undo$/,
  anyLog: /\.undo$/,
  point: /\/points\/\d{10}\.json$/,
  pointNew: /\/points\/\d{10}\.json\.new$/,
  lock: /\/apply\.lock$/,
  session: /\/session\.json$/,
  sessionNew: /\/session\.json\.new$/,
  points: /\/points$/,
  disk: /\/disks\/vm1\.sda$/,
  disks: /\/disks$/,
  part: /^\/restored\.img\.part$/,
  restored: /^\/restored\.img$/,
} as const;

type FileName = keyof typeof files;

function is(operation: Operation | undefined, kind: OperationKind, file: FileName): boolean {
  return operation?.kind === kind && files[file].test(operation.path);
}

/** What a write to an undo log writes. */
function batchOf({
  kind,
  path,
  bytes,
  offset,
}: Operation): "header" | "entries" | "checkpoint" | "index" | "footer" | "content" | undefined {
  if (kind !== "write" || bytes === undefined || !files.anyLog.test(path)) return undefined;
  if (offset === 0) return "header";
  const head = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  if (head.toString("latin1", 0, 8) !== "rplubtch") return "content";
  return (["entries", "checkpoint", "index", "footer"] as const)[(head[32] ?? 1) - 1];
}

/** The last write to the same file in this process. */
function lastWrite({ path, past }: Step): Operation | undefined {
  return past.findLast(
    (each) => each.path === path && (each.kind === "write" || each.kind === "truncate" || each.kind === "punch"),
  );
}

/** The last change of the names in a directory in this process. */
function lastName(past: readonly Operation[], directory: string): Operation | undefined {
  return past.findLast(
    ({ kind, path }) => dirname(path) === directory && ["create", "rename", "unlink", "make-directory"].includes(kind),
  );
}

/** The sync of a log after a batch of this kind. */
function syncOfBatch(batch: ReturnType<typeof batchOf>): Test {
  return (step) => {
    const before = is(step, "sync", "anyLog") ? lastWrite(step) : undefined;
    return before !== undefined && batchOf(before) === batch;
  };
}

/** The sync of a directory right after a change of its names. */
function syncOfName(directory: FileName, kind: OperationKind, file: FileName): Test {
  return (step) => is(step, "sync-directory", directory) && is(step.past.at(-1), kind, file);
}

/** The sync of points after a log was made there, and written. */
function syncOfLogName(file: "log" | "joined"): Test {
  return (step) => is(step, "sync-directory", "points") && is(lastName(step.past, step.path), "create", file);
}

function syncOf(file: FileName): Test {
  return (step) => is(step, "sync", file);
}

function doing(what: RegExp, test: Test): Test {
  return (step) => what.test(step.doing) && test(step);
}

function skip(test: Test): Change {
  return { fault: (step) => (test(step) ? { kind: "skip" } : undefined) };
}

/** `test` is done behind the next `until`. */
function late(test: Test, until: (operation: Operation) => boolean): Change {
  return { fault: (step) => (test(step) ? { kind: "late", until } : undefined) };
}

/** `test` is done when the next checkpoint is durable. */
function behindCheckpoint(test: Test): Change {
  const until = (): ((operation: Operation) => boolean) => {
    let written = false;
    return (operation) => {
      written ||= batchOf(operation) === "checkpoint";
      return written && is(operation, "sync", "log");
    };
  };
  return { fault: (step) => (test(step) ? { kind: "late", until: until() } : undefined) };
}

function at(kind: OperationKind, file: FileName): (operation: Operation) => boolean {
  return (operation) => is(operation, kind, file);
}

const replicaWritten = (operation: Operation): boolean =>
  is(operation, "write", "replica") || is(operation, "punch", "replica");

/** Both changes: a sync left out, and one that comes after what should wait for it. */
function bothWays(
  name: string,
  test: Test,
  until: (operation: Operation) => boolean,
  before: string,
  more: Partial<Edge> = {},
): Edge[] {
  return [
    { name: `sync of ${name}`, change: skip(test), ...more },
    { name: `sync of ${name} → ${before}`, change: late(test, until), ...more },
  ];
}

const stateFiles: readonly Edge[] = [
  ...bothWays("store.json.new", syncOf("storeNew"), at("rename", "store"), "rename"),
  ...bothWays("disk.json.new", syncOf("recordNew"), at("rename", "record"), "rename"),
  ...bothWays("session.json.new", syncOf("sessionNew"), at("rename", "session"), "rename"),
  ...bothWays("a point's record at the commit", doing(/^commit/, syncOf("pointNew")), at("rename", "point"), "rename"),
  ...bothWays("a point's record in a removal", doing(/^prune/, syncOf("pointNew")), at("rename", "point"), "rename"),
  ...bothWays(
    "a point's record that names a joined log",
    doing(/^compact/, syncOf("pointNew")),
    at("rename", "point"),
    "rename",
  ),
  ...bothWays(
    "a point's record that says what the replica is",
    doing(/^rebuild/, syncOf("pointNew")),
    at("rename", "point"),
    "rename",
  ),
  {
    name: "sync of the store's directory, by who makes it and by who opens it",
    change: skip((step) => is(step, "sync-directory", "storeDirectory")),
  },
  {
    found: true,
    name: "sync of the store's directory by who opens it",
    change: skip(
      (step) => is(step, "sync-directory", "storeDirectory") && lastName(step.past, step.path) === undefined,
    ),
  },
  {
    name: "sync of the disk's directory after disk.json",
    change: skip(doing(/^create/, syncOfName("disk", "rename", "record"))),
  },
  {
    name: "sync of the disk's directory after disk.json of a disk that grew",
    change: skip(doing(/^(?!create)/, syncOfName("disk", "rename", "record"))),
  },
  { name: "sync of the disk's directory after session.json", change: skip(syncOfName("disk", "rename", "session")) },
  { name: "sync of points after a commit", change: skip(doing(/^commit/, syncOfName("points", "rename", "point"))) },
  {
    name: "sync of points after the record of a point that stays",
    change: skip(doing(/^prune/, syncOfName("points", "rename", "point"))),
    entries: "any",
  },
  {
    name: "sync of points after the record that names a joined log",
    change: skip(doing(/^compact/, syncOfName("points", "rename", "point"))),
    entries: "any",
  },
];

const making: readonly Edge[] = [
  {
    name: "sync of the store's parent",
    change: skip((step) => step.kind === "sync-directory" && step.path === "/" && !/restore/.test(step.doing)),
  },
  {
    name: "directories of the store → store.json",
    change: late((step) => is(step, "make-directory", "disks"), at("rename", "store")),
  },
  { name: "sync of the directory of disks", change: skip((step) => is(step, "sync-directory", "disks")) },
  ...(["replica", "digests", "pages"] as const).flatMap((file) => [
    {
      name: `length of a new ${file} → disk.json`,
      change: late(
        doing(/^create/, (step) => is(step, "truncate", file)),
        at("rename", "record"),
      ),
    },
    ...bothWays(`a new ${file}`, doing(/^create/, syncOf(file)), at("rename", "record"), "disk.json"),
  ]),
];

const opening: readonly Edge[] = [
  {
    found: true,
    name: "sync of the disk's directory when it is opened",
    change: skip((step) => is(step, "sync-directory", "disk") && lastName(step.past, step.path) === undefined),
  },
  {
    found: true,
    name: "sync of points when the disk is opened",
    change: skip((step) => is(step, "sync-directory", "points") && lastName(step.past, step.path) === undefined),
  },
  {
    found: true,
    name: "removal of .new files",
    change: skip((step) => step.kind === "unlink" && step.path.endsWith(".new")),
  },
  {
    found: true,
    name: "removal of logs no record names",
    change: skip(doing(/^open/, (step) => is(step, "unlink", "anyLog"))),
  },
  {
    name: "sync of a log that is found open",
    change: skip((step) => is(step, "sync", "log") && lastWrite(step) === undefined),
  },
  {
    name: "page cache of a log that is found open dropped",
    change: { dropsCache: (path) => !files.log.test(path) },
    failure: true,
  },
  {
    name: "end of a log that is found open cut off",
    change: skip((step) => is(step, "truncate", "log") && (step.sizeBytes ?? 0) > 0),
  },
  { name: "sync of the cut", change: skip((step) => is(step, "sync", "log") && (lastWrite(step)?.sizeBytes ?? 0) > 0) },
];

const emptied: Test = (step) => is(step, "truncate", "pages") && step.sizeBytes === 0;
const settling = /^rebuild/;
/** Page digests have 32 bytes each. */
const isTooLong = (step: Operation | undefined): boolean => (step?.sizeBytes ?? 0) % 32 === 1;
/** Until the sync from which on the next open believes the table. */
function untilTrusted(): (operation: Operation) => boolean {
  let isLong = false;
  return (operation) => {
    if (is(operation, "truncate", "pages")) isLong = isTooLong(operation);
    return is(operation, "sync", "pages") && !isLong;
  };
}
const syncOfEntries = doing(settling, (step) => is(step, "sync", "digests"));
/** A table that is built anew has just been emptied. */
const sessionGoneForRebuild: Test = (step) =>
  is(step, "unlink", "session") && is(step.past.at(-1), "truncate", "digests");
const rebuilding: readonly Edge[] = [
  { name: "pages cut to 0", change: skip(emptied) },
  {
    name: "sync of pages cut to 0",
    change: skip((step) => is(step, "sync", "pages") && lastWrite(step)?.sizeBytes === 0),
  },
  { name: "pages cut to 0 → digests given their length", change: late(emptied, at("truncate", "digests")) },
  {
    name: "clean-stop record removed before a rebuild",
    change: skip(sessionGoneForRebuild),
    lives: ["wide"],
  },
  { name: "sync of the replica before it is digested", change: skip(doing(/^open/, syncOf("replica"))) },
  {
    name: "page cache of the replica dropped before it is digested",
    change: { dropsCache: (path) => !files.replica.test(path) },
    failure: true,
  },
  { name: "sync of the entries of a table built anew", change: skip(syncOfEntries) },
  {
    name: "sync of the entries of a table built anew → pages",
    change: {
      fault: (step) => (syncOfEntries(step) ? { kind: "late", until: untilTrusted() } : undefined),
    },
    // What was there before is gone.
    lives: ["wide"],
  },
  {
    name: "sync of the pages of a table built anew",
    change: skip(doing(settling, (step) => is(step, "sync", "pages") && lastWrite(step)?.sizeBytes !== 0)),
  },
  {
    name: "pages too long while they are written",
    change: skip(doing(settling, (step) => is(step, "truncate", "pages") && isTooLong(step))),
  },
  {
    name: "sync of pages too long",
    change: skip(doing(settling, (step) => is(step, "sync", "pages") && isTooLong(lastWrite(step)))),
  },
  {
    name: "sync of pages before they have their length",
    change: skip(doing(settling, (step) => is(step, "sync", "pages") && lastWrite(step)?.kind !== "truncate")),
  },
  ...(["digests", "pages"] as const).flatMap((file) => {
    const test = doing(settling, (step) => is(step, "sync", file) && lastWrite(step)?.sizeBytes !== 0);
    return [
      { name: `sync of ${file} of a table built anew → checkpoint`, change: behindCheckpoint(test) },
      {
        name: `sync of ${file} of a table built anew → clean-stop record`,
        change: late(test, at("rename", "session")),
      },
    ];
  }),
];

const sessionGone = syncOfName("disk", "unlink", "session");

const beginning: readonly Edge[] = [
  { name: "sync of the heartbeat", change: skip((step) => is(step, "sync", "lock")) },
  { name: "sync of a new log's header", change: skip(syncOfBatch("header")) },
  {
    name: "sync of points after a new log",
    change: skip(syncOfLogName("log")),
  },
  {
    name: "sync of points after a new log → replica",
    change: late(syncOfLogName("log"), replicaWritten),
  },
  {
    name: "clean-stop record removed",
    change: skip((step) => is(step, "unlink", "session") && !sessionGoneForRebuild(step)),
  },
  {
    name: "clean-stop record removed → replica",
    change: late((step) => is(step, "unlink", "session") && !sessionGoneForRebuild(step), replicaWritten),
  },
  { name: "sync of the disk's directory after the clean-stop record went", change: skip(sessionGone) },
  {
    name: "sync of the disk's directory after the clean-stop record went → replica",
    change: late(sessionGone, replicaWritten),
  },
];

const applying: readonly Edge[] = [
  { name: "sync of old content", change: skip(syncOfBatch("entries")) },
  { name: "old content in the log → replica", change: late((step) => batchOf(step) === "entries", replicaWritten) },
  { name: "sync of old content → replica", change: late(syncOfBatch("entries"), replicaWritten) },
];

const grew = /^(commit|apply)/;

/** The files have got their new lengths, and nothing else was done since. */
const lengthsGiven: Test = ({ past }) =>
  past
    .slice(past.findLastIndex((each) => each.kind !== "sync"))
    .some((each) => is(each, "truncate", "pages") && (each.sizeBytes ?? 0) > 0);

const growing: readonly Edge[] = (["replica", "digests", "pages"] as const).flatMap((file) => [
  {
    name: `longer ${file} → disk.json`,
    change: late(
      doing(
        grew,
        (step) => is(step, "truncate", file) && (step.sizeBytes ?? 0) > 0 && !is(step.past.at(-1), "write", "pages"),
      ),
      at("rename", "record"),
    ),
  },
  ...bothWays(
    `longer ${file}`,
    doing(grew, (step) => is(step, "sync", file) && lengthsGiven(step)),
    at("rename", "record"),
    "disk.json",
  ),
]);

const cutting = /^shrink/;
/** What is changed when a disk is cut: its files get shorter, and not to nothing. */
const cut =
  (file: "replica" | "digests" | "pages"): Test =>
  (step) =>
    is(step, "truncate", file) && (step.sizeBytes ?? 0) > 0;
const recordOfCut: Test = (step) => is(step, "rename", "record");

const shrinking: readonly Edge[] = [
  { name: "sync of what is cut off", change: skip(doing(cutting, syncOfBatch("entries"))), lives: ["shorter"] },
  {
    name: "what is cut off in the log → replica shorter",
    change: late(
      doing(cutting, (step) => batchOf(step) === "entries"),
      at("truncate", "replica"),
    ),
    lives: ["shorter"],
  },
  {
    name: "sync of what is cut off → replica shorter",
    change: late(doing(cutting, syncOfBatch("entries")), at("truncate", "replica")),
    lives: ["shorter"],
  },
  ...bothWays(
    "disk.json.new of a disk that shrank",
    doing(cutting, syncOf("recordNew")),
    at("rename", "record"),
    "rename",
    { lives: ["shorter"] },
  ),
  {
    name: "disk.json of a disk that shrank → replica shorter",
    change: late(doing(cutting, recordOfCut), at("truncate", "replica")),
    lives: ["shorter"],
  },
  {
    name: "sync of the disk's directory after disk.json of a disk that shrank",
    change: skip(doing(cutting, syncOfName("disk", "rename", "record"))),
    lives: ["shorter"],
  },
  {
    name: "sync of the disk's directory after disk.json → replica shorter",
    change: late(doing(cutting, syncOfName("disk", "rename", "record")), at("truncate", "replica")),
    lives: ["shorter"],
  },
  ...(["replica", "digests", "pages"] as const).map((file) => ({
    name: `shorter ${file} again when the disk is opened`,
    change: skip(doing(/^open/, cut(file))),
    lives: ["shorter"],
    found: true as const,
  })),
  {
    name: "disk.json of a disk that is put back to a shorter point → replica shorter",
    change: late(doing(/^roll back/, recordOfCut), at("truncate", "replica")),
    lives: ["points"],
  },
];

function layingAside(during: RegExp, what: string, more: Partial<Edge> = {}): Edge[] {
  return (["replica", "digests", "pages"] as const).flatMap((file) => {
    const test = doing(during, syncOf(file));
    return [
      { name: `sync of ${file} ${what}`, change: skip(test), ...more },
      { name: `sync of ${file} ${what} → checkpoint`, change: behindCheckpoint(test), ...more },
      { name: `sync of ${file} ${what} → clean-stop record`, change: late(test, at("rename", "session")), ...more },
    ];
  });
}

const stopping: readonly Edge[] = [
  ...layingAside(/^suspend/, "in a clean stop"),
  { name: "sync of the checkpoint of a clean stop", change: skip(doing(/^suspend/, syncOfBatch("checkpoint"))) },
  {
    name: "checkpoint → clean-stop record",
    change: late(
      doing(/^suspend/, (step) => batchOf(step) === "checkpoint"),
      at("rename", "session"),
    ),
  },
];

const isFirstCheckpoint: Test = (step) =>
  batchOf(step) === "checkpoint" && Buffer.from(step.bytes ?? []).readBigUInt64LE(64) === 0n;
const syncOfFirst: Test = (step) => {
  const before = is(step, "sync", "log") ? lastWrite(step) : undefined;
  return (
    before?.bytes !== undefined &&
    batchOf(before) === "checkpoint" &&
    Buffer.from(before.bytes).readBigUInt64LE(64) === 0n
  );
};

/** A rollback's checkpoint says that nothing before it is in doubt. */
function doubtingNothing(process: SimulatedProcess): SimulatedProcess {
  return overriding(process, {
    async open(...args) {
      const file = await process.open(...args);
      return overriding(file, {
        write(source, offset) {
          const step = {
            index: 0,
            kind: "write",
            path: file.path,
            bytes: source,
            offset,
            doing: "",
            past: [],
          } as const;
          if (!isFirstCheckpoint(step)) return file.write(source, offset);
          const head = Buffer.from(source);
          const durable = Number(head.readBigUInt64LE(24));
          return file.write(encodeCheckpoint(head.subarray(8, 16), offset, durable, offset), offset);
        },
      });
    },
  });
}

const rollingBack: readonly Edge[] = [
  { name: "checkpoint at 0 of a rollback", change: { wrap: doubtingNothing }, lives: ["points"] },
  { name: "checkpoint at 0 → replica", change: late(isFirstCheckpoint, replicaWritten) },
  { name: "sync of the checkpoint at 0", change: skip(syncOfFirst) },
  { name: "sync of the checkpoint at 0 → replica", change: late(syncOfFirst, replicaWritten) },
  ...layingAside(/^roll back/, "in a rollback"),
];

const committing: readonly Edge[] = [
  ...(["replica", "digests", "pages"] as const).flatMap((file) =>
    bothWays(
      `${file} at the commit`,
      doing(/^commit/, (step) => is(step, "sync", file)),
      at("rename", "point"),
      "point",
    ),
  ),
  ...bothWays("the log's footer", syncOfBatch("footer"), at("rename", "point"), "point"),
  {
    name: "pages → point",
    change: late(
      doing(/^commit/, (step) => is(step, "write", "pages")),
      at("rename", "point"),
    ),
  },
  { name: "footer → point", change: late((step) => batchOf(step) === "footer", at("rename", "point")) },
];

const removing: readonly Edge[] = [
  {
    name: "record of a point that stays → record of one that goes removed",
    change: late(
      doing(/^prune/, (step) => is(step, "rename", "point")),
      at("unlink", "point"),
    ),
    lives: ["points"],
  },
  { name: "sync of points after records went", change: skip(syncOfName("points", "unlink", "point")), entries: "any" },
  {
    name: "records removed → logs removed",
    change: late((step) => is(step, "unlink", "point"), at("unlink", "anyLog")),
  },
];

const joining: readonly Edge[] = [
  ...bothWays("a joined log", syncOf("joined"), at("rename", "point"), "record that names it"),
  {
    name: "footer of a joined log → record that names it",
    change: late((step) => files.joined.test(step.path) && batchOf(step) === "footer", at("rename", "point")),
  },
  {
    name: "sync of points after a joined log",
    change: skip(syncOfLogName("joined")),
    entries: "any",
  },
  {
    name: "record that names a joined log → logs it replaces removed",
    change: late(
      doing(/^compact/, (step) => is(step, "rename", "point")),
      at("unlink", "log"),
    ),
  },
];

const restoring: readonly Edge[] = [
  ...bothWays("a restored file", syncOf("part"), at("rename", "restored"), "rename"),
  {
    name: "sync of the directory after a restore",
    change: skip(doing(/^restore/, (step) => step.kind === "sync-directory")),
  },
];

/** A sync that failed is tried again, and the second answer is taken. */
function tryingAgain(process: SimulatedProcess): SimulatedProcess {
  return overriding(process, {
    async open(...args) {
      const file = await process.open(...args);
      return overriding(file, { datasync: () => file.datasync().catch(() => file.datasync()) });
    },
  });
}

const failing: readonly Edge[] = [
  { name: "a sync that failed is not tried again", change: { wrap: tryingAgain }, failure: true },
];

export const edges: readonly Edge[] = [
  ...stateFiles,
  ...making,
  ...opening,
  ...rebuilding,
  ...beginning,
  ...applying,
  ...growing,
  ...shrinking,
  ...stopping,
  ...rollingBack,
  ...committing,
  ...removing,
  ...joining,
  ...restoring,
  ...failing,
];
