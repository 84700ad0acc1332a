/** Logs on standard error: one JSON object a line by pino, or readable lines on a terminal. Times in UTC with zone. */
import { pino } from "pino";
import type { Logger } from "../index.ts";
import { parseWord } from "./values.ts";
import type { CliIo } from "./verb.ts";

const levels = ["debug", "info", "warn", "error", "silent"] as const;
export type LogLevel = (typeof levels)[number];

export function parseLevel(text: string | undefined, fallback: LogLevel): LogLevel {
  return text === undefined ? fallback : parseWord(text, "--log-level", levels);
}

export function createLog(io: CliIo, options: { readonly level: LogLevel; readonly json: boolean }): Logger {
  if (options.json || !io.isTerminal) {
    const stream = { write: (line: string) => io.err(line) };
    return pino({ level: options.level, base: null, timestamp: pino.stdTimeFunctions.isoTime }, stream);
  }
  const threshold = levels.indexOf(options.level);
  const line =
    (level: LogLevel) =>
    (_fields: object, message: string): void => {
      if (levels.indexOf(level) < threshold) return;
      io.err(`${new Date().toISOString()} ${level}: ${message}\n`);
    };
  return { debug: line("debug"), info: line("info"), warn: line("warn"), error: line("error") };
}
