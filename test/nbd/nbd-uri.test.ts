import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { ReplicationError } from "../../src/base/errors.ts";
import { formatNbdUri, isNbdUri, parseNbdUri } from "../../src/nbd/nbd-uri.ts";

describe("addresses", () => {
  test.each([
    ["nbd://host", { tls: false, place: { kind: "tcp", host: "host", port: 10809 }, exportName: "" }],
    ["nbd://host/", { tls: false, place: { kind: "tcp", host: "host", port: 10809 }, exportName: "" }],
    ["nbd://host:1/a", { tls: false, place: { kind: "tcp", host: "host", port: 1 }, exportName: "a" }],
    ["nbds://10.0.0.1/a/b", { tls: true, place: { kind: "tcp", host: "10.0.0.1", port: 10809 }, exportName: "a/b" }],
    ["nbd://[::1]:7/x%20y", { tls: false, place: { kind: "tcp", host: "::1", port: 7 }, exportName: "x y" }],
    ["nbd+unix:///?socket=/tmp/s", { tls: false, place: { kind: "unix", path: "/tmp/s" }, exportName: "" }],
    ["nbd+unix:///disk?socket=a%3Fb", { tls: false, place: { kind: "unix", path: "a?b" }, exportName: "disk" }],
    ["nbds+unix://?socket=/s", { tls: true, place: { kind: "unix", path: "/s" }, exportName: "" }],
  ])("%s", (text, address) => {
    expect(isNbdUri(text)).toBe(true);
    expect(parseNbdUri(text)).toEqual(address);
  });

  test.each([
    ["http://host/", /none of nbd:/],
    ["nbd:/host", /none of nbd:/],
    ["nbd:unix:/tmp/x", /none of nbd:/],
    ["nbd://", /no address/],
    ["nbd://:10809/", /no address/],
    ["nbd://host:0/", /no address/],
    ["nbd://host:70000/", /no address/],
    ["nbd://host/x?socket=/tmp/s", /nbd\+unix/],
    ["nbd+unix:///x", /needs its socket/],
    ["nbd+unix:///x?socket=", /needs its socket/],
    ["nbd+unix://tmp/x?socket=/s", /three slashes/],
    [`nbd+unix:///?socket=/${"s".repeat(107)}`, /at most 107/],
    ["nbd+unix:///?socket=/a&socket=/b", /once/],
    ["nbd://host/?tls-psk=x", /only socket/],
    ["nbd://host/%", /%25/],
    ["nbd://host/a%00b", /NUL/],
    [`nbd://host/${"n".repeat(4097)}`, /4096/],
    ["nbd://host/x#y", /none of nbd:/],
  ])("%s is refused, saying why", (text, why) => {
    expect(() => parseNbdUri(text)).toThrow(expect.objectContaining({ code: "usage" }) as Error);
    expect(() => parseNbdUri(text)).toThrow(why);
  });

  test.each(["nbds://user:hunter2@host/x", "nbd://hunter2@host", "nbds://u:hunter2@@/#"])(
    "a password is refused and not repeated: %s",
    (text) => {
      expect(() => parseNbdUri(text)).toThrow(/certificates/);
      expect(() => parseNbdUri(text)).not.toThrow(/hunter2/);
    },
  );

  test("one export has one canonical address", () => {
    const canonical = (text: string): string => formatNbdUri(parseNbdUri(text));
    expect(canonical("nbd://HOST/a")).toBe("nbd://host:10809/a");
    expect(canonical("nbd://[::1]/a%2fb")).toBe("nbd://[::1]:10809/a%2Fb");
    expect(canonical("nbd+unix:///?socket=%2Ftmp%2Fa b")).toBe("nbd+unix:///?socket=/tmp/a%20b");
    for (const text of ["image.raw", "/nbd/image", "nbdx://host", "nbd"]) expect(isNbdUri(text)).toBe(false);
  });

  test("what is written is read again; any text is an address or a usage error", () => {
    const text = (minLength: number) =>
      fc.string({ unit: "binary", minLength, maxLength: 12 }).filter((made) => !made.includes("\0"));
    fc.assert(
      fc.property(text(0), text(1), fc.boolean(), (exportName, path, tls) => {
        fc.pre(!exportName.startsWith("/"));
        const address = { tls, place: { kind: "unix", path }, exportName } as const;
        expect(parseNbdUri(formatNbdUri(address))).toEqual(address);
      }),
    );
    fc.assert(
      fc.property(fc.constantFrom("nbd://", "nbd+unix:///", ""), fc.string({ maxLength: 40 }), (start, rest) => {
        try {
          parseNbdUri(start + rest);
        } catch (error) {
          expect((error as ReplicationError).code).toBe("usage");
        }
      }),
    );
  });
});
