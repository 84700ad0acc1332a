import { defineConfig } from "vitest/config";

// `npm test` runs test/**/*.test.ts; `npm run test:long` runs test/**/*.long.ts.
export default defineConfig(({ mode }) => {
  const long = mode === "long";
  return {
    test: {
      include: [long ? "test/**/*.long.ts" : "test/**/*.test.ts"],
      setupFiles: ["test/setup.ts"],
      passWithNoTests: long,
      // Real processes and images share the cores: files run two at a time, tests within a file in order.
      maxWorkers: 2,
      // Far beyond what anything takes: a busy machine is no failure.
      testTimeout: long ? 3_600_000 : 240_000,
      hookTimeout: long ? 3_600_000 : 240_000,
      reporters: ["default"],
    },
  };
});
