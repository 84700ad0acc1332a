#!/usr/bin/env node
/** The binary: finds the verb, runs it, turns what it throws into a message and an exit code. */
import { ReplicationError } from "../base/errors.ts";
import { version } from "../version.ts";
import { toReplicationError } from "../base/errors.ts";
import { exitCodeOf, exitCodes } from "./exit-codes.ts";
import { optimizeLater } from "./late-optimizing.ts";
import { nearest } from "./nearest.ts";
import type { CliIo, VerbEntry } from "./verb.ts";

/** What can be asked for. Only the verb that is meant is loaded: the others would be most of the time a short command takes. */
const verbs: readonly VerbEntry[] = [
  {
    name: "pki",
    summary: "make certificates: init an authority, issue a node's",
    load: async () => (await import("./pki.ts")).pkiVerb,
  },
  {
    name: "recv",
    summary: "receive disks and keep a replica of each",
    load: async () => (await import("./recv.ts")).recvVerb,
  },
  {
    name: "send",
    summary: "send the state of an image to a receiver",
    load: async () => (await import("./send.ts")).sendVerb,
  },
  {
    name: "track",
    summary: "serve an image to a virtual machine, track what changes, and send it again and again",
    load: async () => (await import("./track.ts")).trackVerb,
  },
  {
    name: "adopt",
    summary: "make an image that exists the replica of a new disk, to spare the initial copy",
    load: async () => (await import("./adopt.ts")).adoptVerb,
  },
  { name: "disks", summary: "list the disks of a store", load: async () => (await import("./disks.ts")).disksVerb },
  {
    name: "points",
    summary: "list the recovery points of a disk",
    load: async () => (await import("./points.ts")).pointsVerb,
  },
  {
    name: "restore",
    summary: "write a recovery point to an image file or a block device",
    load: async () => (await import("./restore.ts")).restoreVerb,
    beginsAnew: true,
  },
  {
    name: "export",
    summary: "serve a recovery point read-only over NBD",
    load: async () => (await import("./export.ts")).exportVerb,
  },
  {
    name: "verify",
    summary: "read recovery points again and compare them with their digests",
    load: async () => (await import("./verify.ts")).verifyVerb,
    beginsAnew: true,
  },
  {
    name: "prune",
    summary: "remove recovery points that the retention policy does not keep",
    load: async () => (await import("./prune.ts")).pruneVerb,
  },
  {
    name: "keep",
    summary: "show the retention policy of a disk, or give it one of its own",
    load: async () => (await import("./keep.ts")).keepVerb,
  },
  {
    name: "hold",
    summary: "keep a recovery point from being removed",
    load: async () => (await import("./hold.ts")).holdVerb,
  },
  {
    name: "release",
    summary: "end the hold of a recovery point",
    load: async () => (await import("./release.ts")).releaseVerb,
  },
  {
    name: "compact",
    summary: "join undo logs after points were removed, to get space back",
    load: async () => (await import("./compact.ts")).compactVerb,
  },
  {
    name: "repair",
    summary: "find what has rotted in a replica and have the next send heal it",
    load: async () => (await import("./repair.ts")).repairVerb,
  },
  {
    name: "rollback",
    summary: "make the replica's file the newest recovery point again",
    load: async () => (await import("./rollback.ts")).rollbackVerb,
  },
  {
    name: "compare",
    summary: "compare two images or recovery points",
    load: async () => (await import("./compare.ts")).compareVerb,
    beginsAnew: true,
  },
  {
    name: "inspect",
    summary: "show what a file of a store, an image or a capture of frames is",
    load: async () => (await import("./inspect.ts")).inspectVerb,
  },
];

function overview(): string {
  const width = Math.max(...verbs.map((verb) => verb.name.length));
  const lines = verbs.map((verb) => `  ${verb.name.padEnd(width)}  ${verb.summary}`);
  return `replicate ${version}: block-level replication of disk images

usage: replicate VERB ...

${lines.join("\n")}

replicate VERB --help tells more. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 comparison or verification mismatch,
4 refused (a person must decide), 130 interrupted.
`;
}

async function run(args: readonly string[], io: CliIo): Promise<number> {
  const [name, ...rest] = args;
  if (name === "--version" || name === "-V") {
    io.out(`${version}\n`);
    return exitCodes.done;
  }
  if (name === undefined || name === "--help" || name === "-h" || name === "help") {
    (name === undefined ? io.err : io.out)(overview());
    return name === undefined ? exitCodes.usage : exitCodes.done;
  }
  const entry = verbs.find((known) => known.name === name);
  if (entry === undefined) {
    const meant = nearest(
      name,
      verbs.map((verb) => verb.name),
    );
    const hint = meant === undefined ? "replicate --help lists them" : `did you mean ${meant}?`;
    throw new ReplicationError("usage", `${JSON.stringify(name)} is no verb; ${hint}`);
  }
  const verb = await entry.load();
  if (rest.includes("--help") || rest.includes("-h")) {
    io.out(verb.help);
    return exitCodes.done;
  }
  return await verb.run(rest, io);
}

function report(error: ReplicationError, args: readonly string[], io: CliIo): void {
  if (args.includes("--json")) {
    const { code, message, action, details } = error;
    io.out(`${JSON.stringify({ event: "error", code, message, action, details })}\n`);
    return;
  }
  io.err(`replicate: ${error.message}\n`);
  if (error.code === "usage") {
    const known = verbs.some((verb) => verb.name === args[0]);
    io.err(`try: replicate ${known ? `${args[0]} ` : ""}--help\n`);
  }
  if (error.code === "internal" && error.stack !== undefined) io.err(`${error.stack}\n`);
}

async function main(): Promise<void> {
  optimizeLater();
  const args = process.argv.slice(2);
  const stop = new AbortController();
  let signals = 0;
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    process.on(signal, () => {
      signals++;
      // A second one means it: no waiting for the last writes.
      if (signals > 1) process.exit(exitCodes.interrupted);
      const anew = verbs.find((verb) => verb.name === args[0])?.beginsAnew === true;
      const then = anew ? "another run begins anew" : "run it again to go on";
      stop.abort(new ReplicationError("aborted", `stopped on request; ${then}`));
    });
  }
  const io: CliIo = {
    out: (text) => process.stdout.write(text),
    err: (text) => process.stderr.write(text),
    env: process.env,
    cwd: process.cwd(),
    signal: stop.signal,
    isTerminal: process.stderr.isTTY,
    // Some terminals say 0.
    columns: process.stderr.columns > 20 ? process.stderr.columns : 80,
  };
  // A reader that has gone away (head, a closed pager) is no reason to lose a copy.
  process.stdout.on("error", () => {});
  process.stderr.on("error", () => {});
  try {
    process.exitCode = await run(args, io);
  } catch (thrown) {
    const failed = toReplicationError(thrown);
    // Who stops a run that waits for its peer is not told of the peer.
    const stopped = stop.signal.aborted && failed.action === "reconnect";
    const error = stopped ? toReplicationError(stop.signal.reason) : failed;
    report(error, args, io);
    const verb = await verbs.find((known) => known.name === args[0])?.load();
    process.exitCode = verb?.exitCodes?.[error.code] ?? exitCodeOf(error.code);
  }
}

await main();
