/** `send` of images that a running `replicate track` serves: it makes the cut, and says what has changed. */
import { resolve } from "node:path";
import { ReplicationError, toReplicationError } from "../base/errors.ts";
import type { ControlClient } from "../library/control/client.ts";
import { controlPathOf } from "../library/control/protocol.ts";
import type { Engine } from "../replication/engine.ts";
import { tellMisses } from "../replication/audit-report.ts";
import type { SendReport } from "../replication/report.ts";
import type { ParsedArguments } from "./arguments.ts";
import { exitCodes } from "./exit-codes.ts";
import type { createLog } from "./log.ts";
import { showMachineProgress, showProgress } from "./progress.ts";
import { networkReceiver, parseNetwork, sendOptions } from "./send-options.ts";
import type { CliIo } from "./verb.ts";

/** The disks of a machine whose tracker has several: `send MACHINE HOST:PORT --control SOCKET`. */
export function isControlledMachine(given: ParsedArguments): boolean {
  return given.text("control") !== undefined && !(given.positionals[1] ?? "").includes("/");
}

/** The tracker to ask; undefined: the image is nobody's. Errors: `connect-failed`, for one that was named. */
export async function findTracker(
  given: ParsedArguments,
  io: CliIo,
  { storage, clock }: Engine,
): Promise<ControlClient | undefined> {
  const [image = ""] = given.positionals;
  const named = given.text("control");
  const path = named === undefined ? controlPathOf(resolve(io.cwd, image)) : resolve(io.cwd, named);
  if (named === undefined) {
    const elsewhere =
      /^[a-z0-9+]+:\/\//.test(image) || given.text("to-dir") !== undefined || given.text("state") !== undefined;
    if (elsewhere || (await storage.stat(path)) === undefined) return undefined;
  }
  const { connectControl } = await import("../library/control/client.ts");
  try {
    return await connectControl(path, { clock, signal: io.signal });
  } catch (error) {
    // What a tracker that was killed left behind.
    if (named === undefined && toReplicationError(error).code === "connect-failed") return undefined;
    throw error;
  }
}

interface Surroundings {
  readonly io: CliIo;
  readonly engine: Engine;
  readonly log: ReturnType<typeof createLog>;
  readonly json: boolean;
  readonly tell: (report: SendReport) => string;
}

export async function sendOfTracker(
  given: ParsedArguments,
  tracker: ControlClient,
  { io, engine, log, json, tell }: Surroundings,
): Promise<number> {
  const [machine = "", place = ""] = given.positionals;
  const isMachine = isControlledMachine(given);
  const network = parseNetwork(given, place, { verb: "send", withDisk: !isMachine });
  const { createMachineSender, createSender } = await import("../library/sending.ts");
  const { sendControlled } = await import("../library/control/client.ts");
  await using receiver = await networkReceiver(network, engine);
  const { skipEmpty, ...options } = sendOptions(given);
  let stop = (): void => {};
  try {
    const reports = await sendControlled({
      ...{ engine, control: tracker, signal: io.signal },
      createSend(disks, { consistency }) {
        stop();
        const [first] = disks;
        if (isMachine) {
          const sender = createMachineSender({ ...options, engine, receiver, machine, disks, consistency });
          stop = showMachineProgress(sender, io, { json });
          return { run: async (signal) => (await sender.run(signal)).disks };
        }
        if (first === undefined || disks.length > 1) {
          throw new ReplicationError(
            "usage",
            `the tracker has ${disks.length} disks: send MACHINE HOST:PORT --control SOCKET sends them together`,
          );
        }
        const sender = createSender({
          ...{ ...options, skipEmpty, engine, receiver, consistency },
          ...{ disk: network.disk, source: first.source },
        });
        stop = showProgress(sender, io, { json });
        return { run: async (signal) => [await sender.run(signal)] };
      },
    });
    stop();
    for (const report of reports) io.out(tell(report));
    return tellMisses(reports, log) ? exitCodes.differs : exitCodes.done;
  } finally {
    stop();
    tracker.close();
  }
}
