/** The lint itself: what the layer table refuses is refused, and what the linter cannot see is looked for here. */
import { spawnSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, relative } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { layers, restrictedModules } from "../../scripts/layers.mjs";

const root = join(import.meta.dirname, "../..");
const bin = join(root, "node_modules/.bin");

interface Seed {
  readonly file: string;
  readonly code: string;
  /** Rule that must fire; undefined: none may. */
  readonly rule: string | undefined;
}

const imports = "eslint(no-restricted-imports)";
const seeds: readonly Seed[] = [
  { file: "src/base/a.ts", code: 'import { x } from "../storage/x.ts";\nx();', rule: imports },
  { file: "src/storage/a.ts", code: 'import { x } from "../base/x.ts";\nx();', rule: undefined },
  { file: "src/storage/b.ts", code: 'import koffi from "koffi";\nkoffi();', rule: undefined },
  { file: "src/image/a.ts", code: 'import koffi from "koffi";\nkoffi();', rule: imports },
  { file: "src/image/b.ts", code: 'import { x } from "../table/x.ts";\nx();', rule: imports },
  { file: "src/image/vhdx/c.ts", code: 'import { x } from "../../lanes/x.ts";\nx();', rule: imports },
  { file: "src/image/vhdx/d.ts", code: 'import { x } from "../raw.ts";\nx();', rule: undefined },
  { file: "src/codec/a.ts", code: 'import lz4 from "lz4";\nlz4();', rule: undefined },
  { file: "src/lanes/a.ts", code: 'import lz4 from "lz4";\nlz4();', rule: imports },
  { file: "src/wire/a.ts", code: 'import { x } from "../codec/x.ts";\nx();', rule: imports },
  { file: "src/wire/b.ts", code: 'import type { X } from "../codec/x.ts";\nexport type Y = X;', rule: undefined },
  { file: "src/wire/c.ts", code: 'import { x } from "../transport/x.ts";\nx();', rule: imports },
  { file: "src/wire/d.ts", code: 'import { open } from "node:fs";\nopen();', rule: imports },
  { file: "src/wire/e.ts", code: 'import { crc32 } from "node:zlib";\ncrc32();', rule: undefined },
  { file: "src/wire/f.ts", code: "setTimeout(() => {}, 1);", rule: "eslint(no-restricted-globals)" },
  { file: "src/transport/a.ts", code: 'import { x } from "../wire/x.ts";\nx();', rule: undefined },
  { file: "src/transport/b.ts", code: 'import { connect } from "node:tls";\nconnect();', rule: undefined },
  { file: "src/nbd/a.ts", code: 'import { connect } from "node:net";\nconnect();', rule: imports },
  { file: "src/lanes/b.ts", code: 'import { Worker } from "node:worker_threads";\nnew Worker("x");', rule: undefined },
  { file: "src/replica/b.ts", code: 'import { Worker } from "node:worker_threads";\nnew Worker("x");', rule: imports },
  { file: "src/replica/a.ts", code: 'import { x } from "../lanes/x.ts";\nx();', rule: undefined },
  { file: "src/replica/c.ts", code: 'import { x } from "../replication/x.ts";\nx();', rule: imports },
  { file: "src/replica/retention/decide.ts", code: 'import { open } from "node:fs";\nopen();', rule: imports },
  { file: "src/failover/a.ts", code: 'import { x } from "../replica/x.ts";\nx();', rule: imports },
  { file: "src/site/a.ts", code: 'import { x } from "../cli/x.ts";\nx();', rule: imports },
  { file: "src/site/b.ts", code: 'import { x } from "../testing/x.ts";\nx();', rule: imports },
  { file: "src/site/c.ts", code: 'export * from "../cli/x.ts";', rule: imports },
  { file: "src/testing/a.ts", code: 'import { x } from "../site/x.ts";\nx();', rule: undefined },
  { file: "src/index.ts", code: 'export { x } from "./cli/x.ts";', rule: imports },
  { file: "src/lanes/c.ts", code: "export const now = Date.now();", rule: "eslint(no-restricted-properties)" },
  { file: "src/lanes/d.ts", code: "export const n = Math.random();", rule: "eslint(no-restricted-properties)" },
  { file: "src/lanes/e.ts", code: 'import { randomBytes } from "node:crypto";\nrandomBytes(1);', rule: imports },
  { file: "src/lanes/f.ts", code: "process.exit(1);", rule: "eslint(no-restricted-globals)" },
  { file: "src/lanes/g.ts", code: 'console.log("x");', rule: "eslint(no-console)" },
  { file: "src/base/clock.ts", code: "export const now = Date.now();\nsetTimeout(() => {}, 1);", rule: undefined },
  { file: "src/base/random.ts", code: 'import { randomBytes } from "node:crypto";\nrandomBytes(1);', rule: undefined },
  { file: "src/cli/a.ts", code: "console.log(process.argv);\nprocess.exit(0);", rule: undefined },
  { file: "src/cli/b.ts", code: "setInterval(() => {}, 1);", rule: "eslint(no-restricted-globals)" },
  { file: "src/cli/c.ts", code: "export default 1;", rule: "import(no-default-export)" },
  { file: "src/cli/d.ts", code: 'import { open } from "fs";\nopen();', rule: "unicorn(prefer-node-protocol)" },
  { file: "src/cli/camelCase.ts", code: "export const x = 1;", rule: "unicorn(filename-case)" },
  {
    file: "src/table/a.ts",
    code: 'import { b } from "./b.ts";\nexport const a = (): void => b();',
    rule: "import(no-cycle)",
  },
  {
    file: "src/table/b.ts",
    code: 'import { a } from "./a.ts";\nexport const b = (): void => a();',
    rule: "import(no-cycle)",
  },
  {
    file: "src/table/c.ts",
    code: "async function f(): Promise<void> {}\nexport function g(): void {\n  f();\n}",
    rule: "typescript(no-floating-promises)",
  },
  {
    file: "src/table/d.ts",
    code: 'export function g(kind: "a" | "b"): void {\n  switch (kind) {\n    case "a":\n      break;\n  }\n}',
    rule: "typescript(switch-exhaustiveness-check)",
  },
  {
    file: "src/table/e.ts",
    code: Array.from({ length: 501 }, (_, line) => `export const x${String(line)} = 1;`).join("\n"),
    rule: "eslint(max-lines)",
  },
  {
    file: "src/table/f.ts",
    code: `export function f(): number {\n${"  f();\n".repeat(80)}  return 1;\n}`,
    rule: "eslint(max-lines-per-function)",
  },
];

interface Finding {
  readonly code: string;
  readonly filename: string;
}

describe("the lint refuses what the layer table forbids", () => {
  let folder = "";
  const found = new Map<string, string[]>();

  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), "replicate-lint-"));
    cpSync(join(root, ".oxlintrc.json"), join(folder, ".oxlintrc.json"));
    writeFileSync(
      join(folder, "tsconfig.json"),
      JSON.stringify({
        compilerOptions: {
          strict: true,
          module: "node20",
          target: "es2023",
          noEmit: true,
          allowImportingTsExtensions: true,
        },
        include: ["src"],
      }),
    );
    for (const { file, code } of seeds) {
      mkdirSync(dirname(join(folder, file)), { recursive: true });
      writeFileSync(join(folder, file), `${code}\n`);
    }
    const run = spawnSync(join(bin, "oxlint"), ["--format", "json"], {
      cwd: folder,
      encoding: "utf8",
      env: { ...process.env, OXLINT_TSGOLINT_PATH: join(bin, "tsgolint") },
    });
    expect(run.stdout, run.stderr).toMatch(/^\{/);
    const report = JSON.parse(run.stdout) as { readonly diagnostics: readonly Finding[] };
    for (const { filename, code } of report.diagnostics) found.set(filename, [...(found.get(filename) ?? []), code]);
  });

  afterAll(() => {
    rmSync(folder, { recursive: true, force: true });
  });

  test.each(seeds)("$file: $rule", ({ file, rule }) => {
    const codes = found.get(file) ?? [];
    if (rule === undefined) expect(codes).toEqual([]);
    else expect(codes).toContain(rule);
  });

  test("every folder of src is in the table", () => {
    const folders = readdirSync(join(root, "src"), { withFileTypes: true })
      .filter((entry) => entry.isDirectory() && entry.name !== "testing")
      .map((entry) => entry.name);
    for (const name of folders) expect(Object.keys(layers)).toContain(name);
  });
});

describe("what the linter does not see", () => {
  const sources = readdirSync(join(root, "src"), { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".ts"))
    .map((name) => ({ name, text: readFileSync(join(root, "src", name), "utf8") }));

  /** Names given to import("..."), require("...") or createRequire(...)("..."). */
  function loaded(text: string): readonly string[] {
    return [...text.matchAll(/(?:\bimport|\brequire|\))\s*\(\s*["'`]([^"'`]+)["'`]\s*\)/gi)].map(
      (match) => match[1] ?? "",
    );
  }

  test("finds modules loaded by a call", () => {
    expect(loaded('await import("a"); require("b"); createRequire(import.meta.url)("c")')).toEqual(["a", "b", "c"]);
  });

  test("modules that belong to one folder are not loaded by a call elsewhere", () => {
    const strays = sources.flatMap(({ name, text }) => {
      const folder = name.split("/")[0] ?? "";
      const refused = restrictedModules.filter(({ folders }) => folder !== "testing" && !folders.includes(folder));
      return loaded(text)
        .filter((module) => refused.some(({ names }) => names.includes(module)))
        .map((module) => `${name}: ${module}`);
    });
    expect(strays).toEqual([]);
  });

  test("no file of a lower folder loads a higher one by a call", () => {
    const strays = sources.flatMap(({ name, text }) => {
      const own = layers[name.split("/")[0] ?? ""];
      return loaded(text)
        .map((module) => /^(?:\.\.\/)+([a-z]+)\//.exec(module)?.[1] ?? "")
        .filter((target) => own !== undefined && (layers[target]?.level ?? -1) > own.level)
        .map((target) => `${name}: ${target}`);
    });
    expect(strays).toEqual([]);
  });

  test("below the command line the clock is read in base/clock.ts only", () => {
    const readers = sources
      .filter(({ text }) => /\bnew Date\(\)|\bprocess\.hrtime\b/.test(text))
      .map(({ name }) => name);
    expect(readers.filter((name) => name !== "base/clock.ts" && !name.startsWith("cli/"))).toEqual([]);
  });
});

describe("what the repository says of itself", () => {
  const listed = spawnSync("git", ["ls-files", "--cached", "--others", "--exclude-standard"], {
    cwd: root,
    encoding: "utf8",
  });
  const files = listed.status === 0 ? listed.stdout.split("\n").filter((name) => name !== "") : [];

  function textOf(name: string): string | undefined {
    try {
      const bytes = readFileSync(join(root, name));
      return bytes.subarray(0, 8192).includes(0) ? undefined : bytes.toString("utf8");
    } catch (thrown) {
      // Listed by git and removed from the tree: nothing to check.
      if ((thrown as NodeJS.ErrnoException).code === "ENOENT") return undefined;
      throw thrown;
    }
  }

  test.skipIf(files.length === 0)("no file names a path of the machine it was made on", () => {
    // Put together here, so that this file does not contain them.
    const forbidden = ["work", "farm"].map((name) => `/${name}/`).concat(`.${"library"}`);
    const strays = files.flatMap((name) => {
      const text = textOf(name) ?? "";
      return forbidden.filter((word) => containsPath(text, word)).map((word) => `${name}: ${word}`);
    });
    expect(strays).toEqual([]);
  });

  test.skipIf(files.length === 0)("the documents mention files that exist", () => {
    const documents = files.filter((name) => /^(?:[A-Z]+|docs\/.*)\.md$/.test(name));
    const missing = documents.flatMap((name) =>
      mentioned(textOf(name) ?? "", name)
        .filter((target) => !exists(target))
        .map((target) => `${name}: ${target}`),
    );
    expect(missing).toEqual([]);
  });

  test("the lockfile names no registry", () => {
    expect(readFileSync(join(root, "package-lock.json"), "utf8")).not.toContain('"resolved"');
  });

  /** `/name/` at the start of a path, not inside a relative one. */
  function containsPath(text: string, word: string): boolean {
    for (let at = text.indexOf(word); at >= 0; at = text.indexOf(word, at + 1)) {
      if (!word.startsWith("/") || !/[\w.~)\]}*-]/.test(text[at - 1] ?? " ")) return true;
    }
    return false;
  }

  /** Link targets, and paths in code spans that start with a folder of this repository. */
  function mentioned(text: string, document: string): readonly string[] {
    const links = [...text.matchAll(/\]\((?![a-z]+:|#)([^)#\s]+)/g)].map((match) =>
      relative(root, join(root, dirname(document), match[1] ?? "")),
    );
    const spans = [...text.matchAll(/`((?:src|test|docs|bench|fixtures|scripts|\.ci)\/[\w./-]+|[A-Z]{3,}\.md)`/g)].map(
      (match) => match[1] ?? "",
    );
    return [...links, ...spans];
  }

  function exists(name: string): boolean {
    const path = name.replace(/\/$/, "");
    return files.some((file) => file === path || file.startsWith(`${path}/`));
  }
});
