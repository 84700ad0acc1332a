import { ReplicationError } from "../index.ts";
import type { Verb } from "./verb.ts";
export const inspectVerb: Verb = {
  name: "inspect",
  summary: "show what a file of a store is",
  help: "usage: replicate inspect FILE [--json]\n",
  run: () => Promise.reject(new ReplicationError("usage", "inspect: nothing yet")),
};
