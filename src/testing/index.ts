/** For tests of programs that embed the library. */
export { createMemoryImage } from "../image/memory.ts";
export { createFakeClock, type FakeClock } from "./fake-clock.ts";
export { createLinkedPair, type LinkedPair, type LinkedPairOptions, type LinkFaults } from "./linked-pair.ts";
export { createLinkedStreams, type LinkedStreams, type LinkedStreamsOptions } from "./linked-streams.ts";
