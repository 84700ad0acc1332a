;; xxh64 with seed 0 over memory that all lanes share, in place. The bytes of digest-kernel.ts are this text assembled; a test compares them.
(module
  (import "env" "memory" (memory 1 65536 shared))

  ;; One step of an accumulator: 8 bytes of input.
  (func $round (param $sum i64) (param $input i64) (result i64)
    (i64.mul
      (i64.rotl
        (i64.add (local.get $sum) (i64.mul (local.get $input) (i64.const 0xC2B2AE3D27D4EB4F)))
        (i64.const 31))
      (i64.const 0x9E3779B185EBCA87)))

  (func $merge (param $hash i64) (param $sum i64) (result i64)
    (i64.add
      (i64.mul
        (i64.xor (local.get $hash) (call $round (i64.const 0) (local.get $sum)))
        (i64.const 0x9E3779B185EBCA87))
      (i64.const 0x85EBCA77C2B2AE63)))

  ;; $length: a multiple of 32, not 0. The rounds are written out: a call for each would cost more than the round.
  (func $xxh64 (export "xxh64") (param $at i32) (param $length i32) (result i64)
    (local $end i32) (local $a i64) (local $b i64) (local $c i64) (local $d i64) (local $hash i64)
    (local.set $end (i32.add (local.get $at) (local.get $length)))
    (local.set $a (i64.const 0x60EA27EEADC0B5D6))
    (local.set $b (i64.const 0xC2B2AE3D27D4EB4F))
    (local.set $d (i64.const 0x61C8864E7A143579))
    (loop $stripe
      (local.set $a
        (i64.mul
          (i64.rotl
            (i64.add (local.get $a) (i64.mul (i64.load (local.get $at)) (i64.const 0xC2B2AE3D27D4EB4F)))
            (i64.const 31))
          (i64.const 0x9E3779B185EBCA87)))
      (local.set $b
        (i64.mul
          (i64.rotl
            (i64.add (local.get $b) (i64.mul (i64.load offset=8 (local.get $at)) (i64.const 0xC2B2AE3D27D4EB4F)))
            (i64.const 31))
          (i64.const 0x9E3779B185EBCA87)))
      (local.set $c
        (i64.mul
          (i64.rotl
            (i64.add (local.get $c) (i64.mul (i64.load offset=16 (local.get $at)) (i64.const 0xC2B2AE3D27D4EB4F)))
            (i64.const 31))
          (i64.const 0x9E3779B185EBCA87)))
      (local.set $d
        (i64.mul
          (i64.rotl
            (i64.add (local.get $d) (i64.mul (i64.load offset=24 (local.get $at)) (i64.const 0xC2B2AE3D27D4EB4F)))
            (i64.const 31))
          (i64.const 0x9E3779B185EBCA87)))
      (local.set $at (i32.add (local.get $at) (i32.const 32)))
      (br_if $stripe (i32.lt_u (local.get $at) (local.get $end))))
    (local.set $hash
      (i64.add
        (i64.add (i64.rotl (local.get $a) (i64.const 1)) (i64.rotl (local.get $b) (i64.const 7)))
        (i64.add (i64.rotl (local.get $c) (i64.const 12)) (i64.rotl (local.get $d) (i64.const 18)))))
    (local.set $hash (call $merge (local.get $hash) (local.get $a)))
    (local.set $hash (call $merge (local.get $hash) (local.get $b)))
    (local.set $hash (call $merge (local.get $hash) (local.get $c)))
    (local.set $hash (call $merge (local.get $hash) (local.get $d)))
    (local.set $hash (i64.add (local.get $hash) (i64.extend_i32_u (local.get $length))))
    (local.set $hash
      (i64.mul (i64.xor (local.get $hash) (i64.shr_u (local.get $hash) (i64.const 33))) (i64.const 0xC2B2AE3D27D4EB4F)))
    (local.set $hash
      (i64.mul (i64.xor (local.get $hash) (i64.shr_u (local.get $hash) (i64.const 29))) (i64.const 0x165667B19E3779F9)))
    (i64.xor (local.get $hash) (i64.shr_u (local.get $hash) (i64.const 32))))

  ;; 1 when the 4 KiB at $at are zeros.
  (func $isZero (param $at i32) (result i32)
    (local $end i32)
    (local.set $end (i32.add (local.get $at) (i32.const 4096)))
    (loop $stripe
      (if
        (i64.ne
          (i64.or
            (i64.or (i64.load (local.get $at)) (i64.load offset=8 (local.get $at)))
            (i64.or (i64.load offset=16 (local.get $at)) (i64.load offset=24 (local.get $at))))
          (i64.const 0))
        (then (return (i32.const 0))))
      (local.set $at (i32.add (local.get $at) (i32.const 32)))
      (br_if $stripe (i32.lt_u (local.get $at) (local.get $end))))
    (i32.const 1))

  ;; Of each of $count (not 0) parts of 4 KiB: its xxh64 to $wide, the low 32 bits of that to $low; little endian.
  (func $parts (export "parts") (param $at i32) (param $count i32) (param $wide i32) (param $low i32)
    (local $hash i64)
    (loop $part
      (local.set $hash (call $xxh64 (local.get $at) (i32.const 4096)))
      (i64.store (local.get $wide) (local.get $hash))
      (i64.store32 (local.get $low) (local.get $hash))
      (local.set $at (i32.add (local.get $at) (i32.const 4096)))
      (local.set $wide (i32.add (local.get $wide) (i32.const 8)))
      (local.set $low (i32.add (local.get $low) (i32.const 4)))
      (local.set $count (i32.sub (local.get $count) (i32.const 1)))
      (br_if $part (local.get $count))))

  ;; Of each of $count (not 0) blocks of $parts (a multiple of 4) parts, as above to $wide and $low; a bit for each part that is not zeros to $masks; and
  ;; the xxh64 over those of the parts to $digests, big endian: 0 for a block of zeros, 1 for another one that gives 0.
  (func (export "blocks") (param $at i32) (param $count i32) (param $parts i32)
    (param $digests i32) (param $masks i32) (param $wide i32) (param $low i32)
    (local $part i32) (local $bits i32) (local $any i32) (local $hash i64) (local $shift i64)
    (loop $block
      (call $parts (local.get $at) (local.get $parts) (local.get $wide) (local.get $low))
      (local.set $part (i32.const 0))
      (local.set $any (i32.const 0))
      (local.set $bits (i32.const 0))
      (loop $each
        (if (i32.eqz (call $isZero (local.get $at)))
          (then
            (local.set $any (i32.const 1))
            (local.set $bits
              (i32.or
                (local.get $bits)
                (i32.shl (i32.const 1) (i32.and (local.get $part) (i32.const 7)))))))
        (local.set $at (i32.add (local.get $at) (i32.const 4096)))
        (local.set $part (i32.add (local.get $part) (i32.const 1)))
        (if
          (i32.or
            (i32.eqz (i32.and (local.get $part) (i32.const 7)))
            (i32.eq (local.get $part) (local.get $parts)))
          (then
            (i32.store8 (local.get $masks) (local.get $bits))
            (local.set $masks (i32.add (local.get $masks) (i32.const 1)))
            (local.set $bits (i32.const 0))))
        (br_if $each (i32.lt_u (local.get $part) (local.get $parts))))
      (local.set $hash (call $digestOf (local.get $wide) (local.get $parts) (local.get $any)))
      (local.set $shift (i64.const 56))
      (loop $byte
        (i64.store8 (local.get $digests) (i64.shr_u (local.get $hash) (local.get $shift)))
        (local.set $digests (i32.add (local.get $digests) (i32.const 1)))
        (local.set $shift (i64.sub (local.get $shift) (i64.const 8)))
        (br_if $byte (i64.ge_s (local.get $shift) (i64.const 0))))
      (local.set $wide (i32.add (local.get $wide) (i32.shl (local.get $parts) (i32.const 3))))
      (local.set $low (i32.add (local.get $low) (i32.shl (local.get $parts) (i32.const 2))))
      (local.set $count (i32.sub (local.get $count) (i32.const 1)))
      (br_if $block (local.get $count))))

  ;; Whether the parts in $masks (of $count blocks of $parts parts; bit p%8 of byte p>>3) of content that lies one behind the other at $content have the
  ;; digests that $known has for them, 8 bytes for each part of each block. 1: all.
  (func (export "verify") (param $count i32) (param $parts i32) (param $masks i32) (param $content i32) (param $known i32)
    (result i32)
    (local $part i32)
    (loop $block
      (local.set $part (i32.const 0))
      (loop $each
        (if (call $hasPart (local.get $masks) (local.get $part))
          (then
            (if (i64.ne (i64.load (local.get $known)) (call $xxh64 (local.get $content) (i32.const 4096)))
              (then (return (i32.const 0))))
            (local.set $content (i32.add (local.get $content) (i32.const 4096)))))
        (local.set $known (i32.add (local.get $known) (i32.const 8)))
        (local.set $part (i32.add (local.get $part) (i32.const 1)))
        (br_if $each (i32.lt_u (local.get $part) (local.get $parts))))
      (local.set $masks (i32.add (local.get $masks) (call $maskBytes (local.get $parts))))
      (local.set $count (i32.sub (local.get $count) (i32.const 1)))
      (br_if $block (local.get $count)))
    (i32.const 1))

  ;; Whether blocks get the digests at $digests (8 bytes each, big endian) when their parts in $masks become those that lie one behind the other at $content,
  ;; while the others have the digests in $known. Of a block whose state is 255 it becomes 0 when so, else 1; of others only the content is passed.
  ;; $zeroPart: the digest of a part of zeros. $temp: room for the digests of the parts of a block.
  (func (export "change") (param $count i32) (param $parts i32) (param $masks i32) (param $content i32) (param $known i32)
    (param $digests i32) (param $states i32) (param $zeroPart i64) (param $temp i32)
    (local $part i32) (local $wanted i32) (local $any i32) (local $hash i64)
    (loop $block
      (local.set $part (i32.const 0))
      (local.set $any (i32.const 0))
      (local.set $wanted (i32.eq (i32.load8_u (local.get $states)) (i32.const 255)))
      (loop $each
        (local.set $hash (i64.load (local.get $known)))
        (if (call $hasPart (local.get $masks) (local.get $part))
          (then
            (if (local.get $wanted) (then (local.set $hash (call $xxh64 (local.get $content) (i32.const 4096)))))
            (local.set $content (i32.add (local.get $content) (i32.const 4096)))))
        (i64.store (i32.add (local.get $temp) (i32.shl (local.get $part) (i32.const 3))) (local.get $hash))
        (if (i64.ne (local.get $hash) (local.get $zeroPart)) (then (local.set $any (i32.const 1))))
        (local.set $known (i32.add (local.get $known) (i32.const 8)))
        (local.set $part (i32.add (local.get $part) (i32.const 1)))
        (br_if $each (i32.lt_u (local.get $part) (local.get $parts))))
      (if (local.get $wanted)
        (then
          (local.set $hash (call $digestOf (local.get $temp) (local.get $parts) (local.get $any)))
          (i32.store8
            (local.get $states)
            (i64.ne (local.get $hash) (call $loadBigEndian (local.get $digests))))))
      (local.set $masks (i32.add (local.get $masks) (call $maskBytes (local.get $parts))))
      (local.set $digests (i32.add (local.get $digests) (i32.const 8)))
      (local.set $states (i32.add (local.get $states) (i32.const 1)))
      (local.set $count (i32.sub (local.get $count) (i32.const 1)))
      (br_if $block (local.get $count))))

  (func $hasPart (param $mask i32) (param $part i32) (result i32)
    (i32.and
      (i32.shr_u
        (i32.load8_u (i32.add (local.get $mask) (i32.shr_u (local.get $part) (i32.const 3))))
        (i32.and (local.get $part) (i32.const 7)))
      (i32.const 1)))

  (func $maskBytes (param $parts i32) (result i32)
    (i32.shr_u (i32.add (local.get $parts) (i32.const 7)) (i32.const 3)))

  ;; Of a block from the digests of its parts: 0 when none of them is other than zeros, 1 when another one gives 0.
  (func $digestOf (param $wide i32) (param $parts i32) (param $any i32) (result i64)
    (local $hash i64)
    (if (i32.eqz (local.get $any)) (then (return (i64.const 0))))
    (local.set $hash (call $xxh64 (local.get $wide) (i32.shl (local.get $parts) (i32.const 3))))
    (select (i64.const 1) (local.get $hash) (i64.eqz (local.get $hash))))

  (func $loadBigEndian (param $at i32) (result i64)
    (local $value i64) (local $end i32)
    (local.set $end (i32.add (local.get $at) (i32.const 8)))
    (loop $byte
      (local.set $value
        (i64.or (i64.shl (local.get $value) (i64.const 8)) (i64.load8_u (local.get $at))))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br_if $byte (i32.lt_u (local.get $at) (local.get $end))))
    (local.get $value))

  ;; The engine moves shared memory word by word from JavaScript, and as fast as it can from here.
  (func (export "copy") (param $to i32) (param $from i32) (param $length i32)
    (memory.copy (local.get $to) (local.get $from) (local.get $length)))

  (func (export "zero") (param $at i32) (param $length i32)
    (memory.fill (local.get $at) (i32.const 0) (local.get $length))))
