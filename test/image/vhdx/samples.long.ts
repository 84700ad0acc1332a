/** The large ones of the images of real tools. */
import { describe, expect, test } from "vitest";
import { openImage } from "../../../src/image/open-image.ts";
import { createNodeStorage } from "../../../src/storage/node-storage.ts";
import { createScratch } from "../../storage/scratch.ts";
import { contentDigest, noSamples, samples, unpackSample } from "./samples.ts";

const storage = createNodeStorage();

describe.skipIf(noSamples !== undefined)(
  `large images of real tools (${noSamples ?? "beside this repository"})`,
  () => {
    test.each(samples.filter(({ large }) => large === true))("$file", async ({ file, digest }) => {
      const scratch = await createScratch();
      try {
        const image = await openImage(unpackSample(file, scratch.path), { storage });
        expect(await contentDigest(image.reader)).toBe(digest);
        await image.reader.close();
      } finally {
        await scratch.remove();
      }
    });
  },
);
