#!/usr/bin/env node
/** The binary: finds the verb, runs it, turns what it throws into a message and an exit code. */
import { ReplicationError } from "../index.ts";
import { version } from "../version.ts";
import { toReplicationError } from "../base/errors.ts";
import { compactVerb } from "./compact.ts";
import { compareVerb } from "./compare.ts";
import { disksVerb } from "./disks.ts";
import { exitCodeOf, exitCodes } from "./exit-codes.ts";
import { holdVerb } from "./hold.ts";
import { inspectVerb } from "./inspect.ts";
import { pkiVerb } from "./pki.ts";
import { pointsVerb } from "./points.ts";
import { pruneVerb } from "./prune.ts";
import { recvVerb } from "./recv.ts";
import { releaseVerb } from "./release.ts";
import { restoreVerb } from "./restore.ts";
import { repairVerb } from "./repair.ts";
import { rollbackVerb } from "./rollback.ts";
import { sendVerb } from "./send.ts";
import type { CliIo, Verb } from "./verb.ts";
import { verifyVerb } from "./verify.ts";

const verbs: readonly Verb[] = [
  pkiVerb,
  recvVerb,
  sendVerb,
  disksVerb,
  pointsVerb,
  restoreVerb,
  verifyVerb,
  pruneVerb,
  holdVerb,
  releaseVerb,
  compactVerb,
  repairVerb,
  rollbackVerb,
  compareVerb,
  inspectVerb,
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
  const verb = verbs.find((known) => known.name === name);
  if (verb === undefined) {
    throw new ReplicationError("usage", `${JSON.stringify(name)} is no verb; replicate --help lists them`);
  }
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
  const args = process.argv.slice(2);
  const stop = new AbortController();
  let signals = 0;
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    process.on(signal, () => {
      signals++;
      // A second one means it: no waiting for the last writes.
      if (signals > 1) process.exit(exitCodes.interrupted);
      stop.abort(new ReplicationError("aborted", "stopped on request; run it again to go on"));
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
    const error = toReplicationError(thrown);
    report(error, args, io);
    const verb = verbs.find((known) => known.name === args[0]);
    process.exitCode = verb?.exitCodes?.[error.code] ?? exitCodeOf(error.code);
  }
}

await main();
