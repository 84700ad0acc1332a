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

  ;; The low 32 bits of each of $count (not 0) parts of 4 KiB, little endian, to $target.
  (func (export "parts") (param $at i32) (param $count i32) (param $target i32)
    (loop $part
      (i32.store (local.get $target) (i32.wrap_i64 (call $xxh64 (local.get $at) (i32.const 4096))))
      (local.set $at (i32.add (local.get $at) (i32.const 4096)))
      (local.set $target (i32.add (local.get $target) (i32.const 4)))
      (local.set $count (i32.sub (local.get $count) (i32.const 1)))
      (br_if $part (local.get $count)))))
