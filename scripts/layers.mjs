// The one table of who may import what. `make-lint-config.mjs` turns it into `.oxlintrc.json`; `test/repo/layers.test.ts` checks it bites.

/**
 * A folder of `src`. It imports itself and every folder of a lower level; `only` narrows that, `also` widens it.
 * @typedef {object} Layer
 * @property {number} level
 * @property {string[]} [also] folders of the same level it may import
 * @property {string[]} [alsoTypes] folders of the same level it may import types of
 * @property {string[]} [only] the folders it may import, in place of every lower one
 * @property {boolean} [pure] a function of bytes and values: no files, sockets, clock or chance
 */

/** @type {Record<string, Layer>} */
export const layers = {
  base: { level: 0 },
  storage: { level: 0, also: ["base"] },
  image: { level: 1 },
  codec: { level: 1 },
  wire: { level: 1, only: ["base"], alsoTypes: ["codec"], pure: true },
  transport: { level: 1, also: ["wire"] },
  lanes: { level: 2 },
  table: { level: 2, only: ["base", "storage"] },
  nbd: { level: 2 },
  track: { level: 3 },
  replica: { level: 3 },
  replication: { level: 4 },
  failover: { level: 5, only: ["base"], pure: true },
  library: { level: 6 },
  site: { level: 7 },
  cli: { level: 8 },
};

/** Files outside the pure folders that are pure all the same; globs. */
export const pureFiles = [
  "src/replica/retention/*.ts",
  "src/replication/plan.ts",
  "src/track/dirty-bitmap.ts",
  "src/base/units.ts",
  "src/base/paged-bits.ts",
];

/**
 * Packages and Node modules that belong to some folders only (`src/testing` may use all of them).
 * @type {{ names: string[], folders: string[], why: string }[]}
 */
export const restrictedModules = [
  { names: ["koffi"], folders: ["storage"], why: "system calls live in storage" },
  { names: ["node:tls", "node:net"], folders: ["transport"], why: "sockets live in transport" },
  { names: ["@peculiar/x509", "reflect-metadata"], folders: ["transport"], why: "certificates live in transport" },
  { names: ["node:worker_threads"], folders: ["lanes"], why: "threads live in lanes" },
  {
    names: ["lz4", "lz4-wasm-nodejs", "xxhash-wasm"],
    folders: ["codec"],
    why: "compression and digests live in codec",
  },
  { names: ["@msgpack/msgpack"], folders: ["wire"], why: "message encoding lives in wire" },
  {
    names: ["pino", "node:process", "node:console", "node:readline"],
    folders: ["cli"],
    why: "the terminal belongs to cli",
  },
  {
    names: ["node:timers", "node:timers/promises", "node:perf_hooks"],
    folders: [],
    why: "time is a parameter: take a Clock (base/clock.ts)",
  },
  {
    names: ["node:http", "node:https", "node:http2", "node:dgram", "node:cluster"],
    folders: ["site"],
    why: "only the control API of site may",
  },
];

/** What a pure file may use of Node: functions of bytes. */
export const pureNodeModules = ["node:buffer", "node:util", "node:zlib"];

/** Global names no code of `src` uses; `cli` alone may use the second list, `base/clock.ts` the first. */
export const clockGlobals = ["setTimeout", "setInterval", "setImmediate"];
export const terminalGlobals = ["process", "console"];
