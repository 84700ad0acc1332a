/** Commands of the user's that quiet a machine for a cut, and let it go on. */
import { spawn } from "node:child_process";
import { ReplicationError } from "../base/errors.ts";
import type { Quiescing } from "../replication/quiescing.ts";
import type { CliIo } from "./verb.ts";

export function commandsOf(freeze: string, thaw: string, io: CliIo): Pick<Quiescing, "freeze" | "thaw"> {
  return {
    freeze: (signal) => runCommand(freeze, io, signal),
    thaw: (signal) => runCommand(thaw, io, signal),
  };
}

/** Runs it by sh, with its output as ours. One that takes too long is killed, with what it started. */
function runCommand(command: string, { env, cwd }: CliIo, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn("sh", ["-c", command], { env, cwd, stdio: ["ignore", "ignore", "inherit"], detached: true });
    const stop = (): void => {
      try {
        if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL");
      } catch {
        // It has ended by itself.
      }
    };
    signal.addEventListener("abort", stop, { once: true });
    const end = (error?: Error): void => {
      signal.removeEventListener("abort", stop);
      if (error === undefined) resolve();
      else reject(signal.aborted ? signal.reason : error);
    };
    child.once("error", end);
    child.once("close", (code, killedBy) => {
      if (code === 0) end();
      else end(new ReplicationError("internal", `${JSON.stringify(command)} ended with ${code ?? killedBy}`));
    });
  });
}
