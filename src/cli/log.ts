/** Logs on standard error: one JSON object a line by pino, or readable lines on a terminal. Times in UTC with zone. */
import { createRequire } from "node:module";
import type { Logger } from "../base/logger.ts";
import { parseWord } from "./values.ts";
import type { CliIo } from "./verb.ts";

const levels = ["debug", "info", "warn", "error", "silent"] as const;
export type LogLevel = (typeof levels)[number];

export function parseLevel(text: string | undefined, fallback: LogLevel): LogLevel {
  return text === undefined ? fallback : parseWord(text, "--log-level", levels);
}

export function createLog(io: CliIo, options: { readonly level: LogLevel; readonly json: boolean }): Logger {
  const threshold = levels.indexOf(options.level);
  const write = options.json || !io.isTerminal ? jsonLines(io) : readableLines(io);
  const line =
    (level: Exclude<LogLevel, "silent">) =>
    (fields: object, message: string): void => {
      if (levels.indexOf(level) >= threshold) write(level, fields, message);
    };
  return { debug: line("debug"), info: line("info"), warn: line("warn"), error: line("error") };
}

type Write = (level: Exclude<LogLevel, "silent">, fields: object, message: string) => void;

/** Loads pino with the first line: most runs of a short command log nothing. */
function jsonLines(io: CliIo): Write {
  let logger: Logger | undefined;
  return (level, fields, message) => {
    if (logger === undefined) {
      const { pino } = createRequire(import.meta.url)("pino") as typeof import("pino");
      const stream = { write: (line: string) => io.err(line) };
      logger = pino({ level: "debug", base: null, timestamp: pino.stdTimeFunctions.isoTime }, stream);
    }
    logger[level](fields, message);
  };
}

function readableLines(io: CliIo): Write {
  return (level, _fields, message) => {
    io.err(`${new Date().toISOString()} ${level}: ${message}\n`);
  };
}
