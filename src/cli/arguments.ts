/** Arguments of a verb: node's parser, with errors a person understands. */
import { type ParseArgsConfig, parseArgs } from "node:util";
import { ReplicationError } from "../base/errors.ts";
import { nearest } from "./nearest.ts";

export interface ParsedArguments {
  readonly positionals: readonly string[];
  /** Value of an option that takes one. */
  text(name: string): string | undefined;
  /** All values of an option that may be given several times. */
  texts(name: string): readonly string[];
  flag(name: string): boolean;
}

/** `flags` take no value, `options` one, `lists` one each time. Throws `usage`. */
export function parseArguments(
  args: readonly string[],
  shape: {
    readonly verb: string;
    readonly flags?: readonly string[];
    readonly options?: readonly string[];
    readonly lists?: readonly string[];
    /** Names of the positional arguments, for messages; as many as there must be. */
    readonly positionals: readonly string[];
    /** How many more there may be; default 0. */
    readonly optional?: number;
  },
): ParsedArguments {
  const options: NonNullable<ParseArgsConfig["options"]> = {};
  for (const name of shape.flags ?? []) options[name] = { type: "boolean" };
  for (const name of shape.options ?? []) options[name] = { type: "string" };
  for (const name of shape.lists ?? []) options[name] = { type: "string", multiple: true };
  let parsed: { values: Record<string, unknown>; positionals: string[] };
  try {
    parsed = parseArgs({ args: [...args], options, allowPositionals: true, strict: true });
  } catch (error) {
    const message = error instanceof Error ? (error.message.split(". ")[0] ?? error.message) : String(error);
    const meant = nearest(/^Unknown option '--([^']+)'/.exec(message)?.[1] ?? "", Object.keys(options));
    const hint = meant === undefined ? "" : `; did you mean --${meant}?`;
    throw new ReplicationError("usage", `${shape.verb}: ${message}${hint}`, { cause: error });
  }
  const { positionals, values } = parsed;
  const most = shape.positionals.length + (shape.optional ?? 0);
  if (positionals.length < shape.positionals.length || positionals.length > most) {
    const missing = shape.positionals.slice(positionals.length);
    throw new ReplicationError(
      "usage",
      missing.length > 0
        ? `${shape.verb}: ${missing.join(" and ")} missing`
        : `${shape.verb}: ${JSON.stringify(positionals[most])} is one argument too many`,
    );
  }
  return {
    positionals,
    text(name) {
      const value = values[name];
      return typeof value === "string" ? value : undefined;
    },
    texts(name) {
      const value = values[name];
      return Array.isArray(value) ? value.map(String) : [];
    },
    flag: (name) => values[name] === true,
  };
}

/** The value of an option, parsed; undefined when it is not given. */
export function optional<T>(value: string | undefined, parse: (text: string) => T): T | undefined {
  return value === undefined ? undefined : parse(value);
}

/** The value of an option that must be given. */
export function needed(value: string | undefined, verb: string, option: string): string {
  if (value === undefined) throw new ReplicationError("usage", `${verb}: ${option} is missing`);
  return value;
}
