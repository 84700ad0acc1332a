import { defineConfig } from "vitest/config";

// Three tiers, by the name of the file: `npm test` runs test/**/*.test.ts, minutes; `npm run test:slow` test/**/*.slow.ts, what takes more than some ten
// seconds a file; `npm run test:long` test/**/*.long.ts, hours.
export default defineConfig(({ mode }) => {
  const tier = mode === "slow" || mode === "long" ? mode : "test";
  const timeout = tier === "long" ? 3_600_000 : 240_000;
  return {
    test: {
      include: [`test/**/*.${tier}.ts`],
      setupFiles: ["test/setup.ts"],
      passWithNoTests: tier === "long",
      // Real processes and images share the cores: files run two at a time, tests within a file in order.
      maxWorkers: 2,
      // Far beyond what anything takes: a busy machine is no failure.
      testTimeout: timeout,
      hookTimeout: timeout,
      reporters: ["default"],
    },
  };
});
