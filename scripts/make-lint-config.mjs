// Writes `.oxlintrc.json` from the table in layers.mjs. `--check` only compares, and fails when the file is not up to date.
import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { clockGlobals, layers, pureFiles, pureNodeModules, restrictedModules, terminalGlobals } from "./layers.mjs";

const folders = Object.keys(layers);

/**
 * Folders `name` may import besides itself.
 * @param {string} name
 * @returns {string[]}
 */
function allowedFolders(name) {
  const layer = layers[name];
  if (layer === undefined) throw new Error(`no such layer: ${name}`);
  const lower = layer.only ?? folders.filter((other) => (layers[other]?.level ?? 0) < layer.level);
  return [...lower, ...(layer.also ?? [])];
}

/** @param {string[]} names */
const anyOf = (names) => names.map((name) => name.replaceAll(/[/.]/g, "\\$&")).join("|");

/** @param {string[]} names */
const relativeTo = (names) => `^(?:\\.{1,2}/)+(?:${names.join("|")})/`;

/**
 * The `no-restricted-imports` patterns of one folder.
 * @param {string} name
 */
function importPatterns(name) {
  const layer = layers[name];
  if (layer === undefined) throw new Error(`no such layer: ${name}`);
  const allowed = new Set([name, ...allowedFolders(name)]);
  const typesOnly = (layer.alsoTypes ?? []).filter((other) => !allowed.has(other));
  const refused = folders.filter((other) => !allowed.has(other) && !typesOnly.includes(other));
  if (name !== "testing") refused.push("testing");
  const patterns = [
    {
      regex: relativeTo(refused),
      message: `src/${name} may import only itself and: ${[...allowedFolders(name), ...typesOnly.map((other) => `types of ${other}`)].join(", ") || "nothing"} (scripts/layers.mjs).`,
    },
  ];
  if (typesOnly.length > 0) {
    patterns.push(
      /** @type {any} */ ({
        regex: relativeTo(typesOnly),
        allowTypeImports: true,
        message: `src/${name} may import types of ${typesOnly.join(", ")}, no values (scripts/layers.mjs).`,
      }),
    );
  }
  for (const { names, folders: homes, why } of restrictedModules) {
    if (homes.includes(name)) continue;
    patterns.push({ regex: `^(?:${anyOf(names)})(?:/|$)`, message: `Not in src/${name}: ${why}.` });
  }
  if (name !== "cli") {
    patterns.push({
      regex: "^(?:\\.\\./)+index\\.ts$",
      message: "The public API is for users; here, import from where it is made.",
    });
  }
  return layer.pure === true ? [...patterns, purePattern] : patterns;
}

const purePattern = {
  group: ["node:*", "node:*/*", ...pureNodeModules.map((name) => `!${name}`)],
  message: "A pure file: bytes and values only, no files, sockets, clock or chance.",
};

const chanceImports = {
  name: "node:crypto",
  importNames: ["randomBytes", "randomUUID", "randomInt", "randomFill", "randomFillSync", "getRandomValues"],
  message: "Chance is a parameter: take a Random (base/random.ts).",
};

/** @param {({ regex: string, message: string } | { group: string[], message: string })[]} patterns */
const noRestrictedImports = (patterns, paths = [chanceImports]) => ["error", { paths, patterns }];

/** @param {string[]} names */
const restrictGlobals = (names) => [
  "error",
  ...names.map((name) => ({
    name,
    message: clockGlobals.includes(name) ? "Time is a parameter: take a Clock (base/clock.ts)." : "Only cli may.",
  })),
];

const noClockOrChance = [
  "error",
  { object: "Math", property: "random", message: "Chance is a parameter: take a Random (base/random.ts)." },
  { object: "Date", property: "now", message: "Time is a parameter: take a Clock (base/clock.ts)." },
  { object: "performance", property: "now", message: "Time is a parameter: take a Clock (base/clock.ts)." },
];

const folderOverrides = folders.map((name) => ({
  files: [`src/${name}/**/*.ts`],
  rules: {
    "no-restricted-imports": noRestrictedImports(importPatterns(name)),
    ...(name === "cli" ? { "no-restricted-globals": restrictGlobals(clockGlobals) } : {}),
  },
}));

const pureFileOverrides = pureFiles.map((glob) => {
  const folder = glob.split("/")[1] ?? "";
  return {
    files: [glob],
    rules: { "no-restricted-imports": noRestrictedImports([...importPatterns(folder), purePattern]) },
  };
});

const config = {
  $schema: "./node_modules/oxlint/configuration_schema.json",
  plugins: ["typescript", "unicorn", "import", "oxc"],
  categories: { correctness: "error" },
  options: { typeAware: true },
  ignorePatterns: ["dist/**", "node_modules/**", "bench/results/**", "bench/.out/**", ".cache/**"],
  rules: {
    "import/no-cycle": "error",
    "import/no-default-export": "error",
    "unicorn/prefer-node-protocol": "error",
    "unicorn/filename-case": ["error", { case: "kebabCase" }],
    "typescript/no-floating-promises": "error",
    "typescript/no-misused-promises": "error",
    "typescript/await-thenable": "error",
    "typescript/switch-exhaustiveness-check": ["error", { considerDefaultExhaustiveForUnions: true }],
    "typescript/consistent-type-imports": ["error", { disallowTypeAnnotations: false }],
    // Takes functions that carry their own state (a WebAssembly instance's exports) for methods.
    "typescript/unbound-method": "off",
    // A copy is right where the loop changes what it walks over.
    "unicorn/no-useless-spread": "off",
    "unicorn/no-new-array": "off",
    "typescript/no-explicit-any": "error",
    "typescript/only-throw-error": "error",
    "no-var": "error",
    "prefer-const": "error",
    eqeqeq: "error",
    "no-empty": "error",
  },
  overrides: [
    {
      files: ["src/**/*.ts"],
      rules: {
        "max-lines": ["error", { max: 500 }],
        "max-lines-per-function": ["error", { max: 80 }],
        "no-console": "error",
        "no-restricted-globals": restrictGlobals([...clockGlobals, ...terminalGlobals]),
        "no-restricted-properties": noClockOrChance,
      },
    },
    ...folderOverrides,
    ...pureFileOverrides,
    {
      files: ["src/index.ts", "src/tracking.ts"],
      rules: {
        "no-restricted-imports": noRestrictedImports([
          { regex: "^\\./cli/", message: "The public API knows nothing of the command line." },
        ]),
      },
    },
    { files: ["src/cli/**/*.ts"], rules: { "no-console": "off" } },
    {
      files: ["src/base/clock.ts"],
      rules: { "no-restricted-globals": restrictGlobals(terminalGlobals), "no-restricted-properties": "off" },
    },
    {
      files: ["src/base/random.ts"],
      rules: { "no-restricted-imports": noRestrictedImports(importPatterns("base"), []) },
    },
    // Configuration files are read by their tools as default exports.
    { files: ["*.config.ts", "*.config.mjs"], rules: { "import/no-default-export": "off" } },
  ],
};

const path = fileURLToPath(new URL("../.oxlintrc.json", import.meta.url));
const text = `${JSON.stringify(config, null, 2)}\n`;
if (process.argv.includes("--check")) {
  let present = "";
  try {
    present = readFileSync(path, "utf8");
  } catch (thrown) {
    // A missing file is reported below as "not up to date".
    if (/** @type {NodeJS.ErrnoException} */ (thrown).code !== "ENOENT") throw thrown;
  }
  if (present !== text) {
    console.error(".oxlintrc.json is not what scripts/layers.mjs gives. Run: node scripts/make-lint-config.mjs");
    process.exit(1);
  }
} else {
  writeFileSync(path, text);
}
