# cython: language_level=3
"""Take blocks of 64 bytes into one SHA-256 chaining state or two, with whatever the processor has (inline-only).

Written from FIPS 180-4, section 6.2.2, and the descriptions of the processors' SHA-256 instructions. A state is the
eight words H0 to H7 in this machine's byte order. An instruction waits for the one before it in the same state: two
states that take turns fill each other's pauses.
"""
from libc.stdint cimport uint8_t, uint32_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    typedef void (*sha_absorber)(uint32_t *, const uint8_t *, size_t);
    typedef void (*sha_absorber_two)(uint32_t *, const uint8_t *, uint32_t *, const uint8_t *, size_t);

    static const uint32_t sha_start[8] = {
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
    };
    static const uint32_t sha_constant[64] __attribute__((aligned(64))) = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
    };

    /* What the processor's own prefetching leaves to wait for: in a stream out of memory it stops at each page's end,
       and here a page's first bytes took as long as half its hashing. */
    #define SHA_AHEAD_BYTES 2048
    #define SHA_AHEAD(data) __builtin_prefetch((const void *)((uintptr_t)(data) + SHA_AHEAD_BYTES))

    #define SHA_TURN(x, count) ((x) >> (count) | (x) << (32 - (count)))
    #define SHA_ROUND(a, b, c, d, e, f, g, h, at)                                                              \\
        h += (SHA_TURN(e, 6) ^ SHA_TURN(e, 11) ^ SHA_TURN(e, 25)) + (((f ^ g) & e) ^ g) + sha_constant[at] + w[at]; \\
        d += h;                                                                                                \\
        h += (SHA_TURN(a, 2) ^ SHA_TURN(a, 13) ^ SHA_TURN(a, 22)) + ((a & b) | ((a | b) & c));

    static void sha_plain(uint32_t *state, const uint8_t *data, size_t blocks) {
        uint32_t w[64];
        for (; blocks; blocks--, data += 64) {
            uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
            uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
            for (int at = 0; at < 16; at++)
                w[at] = (uint32_t)data[4 * at] << 24 | (uint32_t)data[4 * at + 1] << 16
                    | (uint32_t)data[4 * at + 2] << 8 | data[4 * at + 3];
            for (int at = 16; at < 64; at++)
                w[at] = w[at - 16] + w[at - 7]
                    + (SHA_TURN(w[at - 15], 7) ^ SHA_TURN(w[at - 15], 18) ^ w[at - 15] >> 3)
                    + (SHA_TURN(w[at - 2], 17) ^ SHA_TURN(w[at - 2], 19) ^ w[at - 2] >> 10);
            for (int at = 0; at < 64; at += 8) {
                SHA_ROUND(a, b, c, d, e, f, g, h, at)
                SHA_ROUND(h, a, b, c, d, e, f, g, at + 1)
                SHA_ROUND(g, h, a, b, c, d, e, f, at + 2)
                SHA_ROUND(f, g, h, a, b, c, d, e, at + 3)
                SHA_ROUND(e, f, g, h, a, b, c, d, at + 4)
                SHA_ROUND(d, e, f, g, h, a, b, c, at + 5)
                SHA_ROUND(c, d, e, f, g, h, a, b, at + 6)
                SHA_ROUND(b, c, d, e, f, g, h, a, at + 7)
            }
            state[0] += a; state[1] += b; state[2] += c; state[3] += d;
            state[4] += e; state[5] += f; state[6] += g; state[7] += h;
        }
    }

    static void sha_plain_two(
        uint32_t *one, const uint8_t *one_data, uint32_t *other, const uint8_t *other_data, size_t blocks
    ) {
        sha_plain(one, one_data, blocks);
        sha_plain(other, other_data, blocks);
    }

    #if defined(__x86_64__)
    #include <cpuid.h>
    #include <immintrin.h>

    /* The state as the instructions want it: (F, E, B, A) and (H, G, D, C), the lowest word first. Two rounds take
       the lowest two words of W + K. `schedule` makes the four words that come 16 after w0's from w0 to w3. */
    #define SHA_X86 __attribute__((target("sha,sse4.1,ssse3")))
    #define SHA_X86_INLINE SHA_X86 static inline __attribute__((always_inline))

    SHA_X86_INLINE __m128i sha_x86_load(const uint8_t *data) {
        const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
        return _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)data), swap);
    }

    SHA_X86_INLINE __m128i sha_x86_schedule(__m128i w0, __m128i w1, __m128i w2, __m128i w3) {
        __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), _mm_alignr_epi8(w3, w2, 4));
        return _mm_sha256msg2_epu32(sum, w3);
    }

    typedef struct { __m128i abef, cdgh, abef_before, cdgh_before, w[4]; } sha_x86_lane;

    SHA_X86_INLINE void sha_x86_open(sha_x86_lane *lane, const uint32_t *state) {
        __m128i low = _mm_loadu_si128((const __m128i *)state), high = _mm_loadu_si128((const __m128i *)(state + 4));
        low = _mm_shuffle_epi32(low, 0x1b);    /* D C B A */
        high = _mm_shuffle_epi32(high, 0x1b);  /* H G F E */
        lane->abef = _mm_unpackhi_epi64(high, low);
        lane->cdgh = _mm_unpacklo_epi64(high, low);
    }

    SHA_X86_INLINE void sha_x86_close(const sha_x86_lane *lane, uint32_t *state) {
        __m128i low = _mm_unpackhi_epi64(lane->cdgh, lane->abef), high = _mm_unpacklo_epi64(lane->cdgh, lane->abef);
        _mm_storeu_si128((__m128i *)state, _mm_shuffle_epi32(low, 0x1b));
        _mm_storeu_si128((__m128i *)(state + 4), _mm_shuffle_epi32(high, 0x1b));
    }

    SHA_X86_INLINE void sha_x86_begin(sha_x86_lane *lane, const uint8_t *data) {
        lane->abef_before = lane->abef;
        lane->cdgh_before = lane->cdgh;
        for (int at = 0; at < 4; at++) lane->w[at] = sha_x86_load(data + 16 * at);
    }

    SHA_X86_INLINE void sha_x86_rounds(sha_x86_lane *lane, int at) {  /* four of them */
        __m128i *w = lane->w;
        __m128i sum = _mm_add_epi32(w[at % 4], _mm_load_si128((const __m128i *)(sha_constant + 4 * at)));
        lane->cdgh = _mm_sha256rnds2_epu32(lane->cdgh, lane->abef, sum);
        lane->abef = _mm_sha256rnds2_epu32(lane->abef, lane->cdgh, _mm_shuffle_epi32(sum, 0x0e));
        if (at < 12) w[at % 4] = sha_x86_schedule(w[at % 4], w[(at + 1) % 4], w[(at + 2) % 4], w[(at + 3) % 4]);
    }

    SHA_X86_INLINE void sha_x86_end(sha_x86_lane *lane) {
        lane->abef = _mm_add_epi32(lane->abef, lane->abef_before);
        lane->cdgh = _mm_add_epi32(lane->cdgh, lane->cdgh_before);
    }

    /* Code that leaves something in the upper halves of the vector registers, as isal's does, makes each of the
       instructions below wait for them: less than half the speed. */
    __attribute__((target("avx"))) static void sha_x86_clear_upper(void) { _mm256_zeroupper(); }

    static inline void sha_x86_clean(void) {
        if (__builtin_cpu_supports("avx")) sha_x86_clear_upper();
    }

    SHA_X86 static void sha_fast(uint32_t *state, const uint8_t *data, size_t blocks) {
        sha_x86_lane lane;
        sha_x86_clean();
        sha_x86_open(&lane, state);
        for (; blocks; blocks--, data += 64) {
            SHA_AHEAD(data);
            sha_x86_begin(&lane, data);
            #pragma GCC unroll 16
            for (int at = 0; at < 16; at++) sha_x86_rounds(&lane, at);
            sha_x86_end(&lane);
        }
        sha_x86_close(&lane, state);
    }

    SHA_X86 static void sha_fast_two(
        uint32_t *one, const uint8_t *one_data, uint32_t *other, const uint8_t *other_data, size_t blocks
    ) {
        sha_x86_lane first, second;
        sha_x86_clean();
        sha_x86_open(&first, one);
        sha_x86_open(&second, other);
        for (; blocks; blocks--, one_data += 64, other_data += 64) {
            SHA_AHEAD(one_data);
            SHA_AHEAD(other_data);
            sha_x86_begin(&first, one_data);
            sha_x86_begin(&second, other_data);
            #pragma GCC unroll 16
            for (int at = 0; at < 16; at++) {
                sha_x86_rounds(&first, at);
                sha_x86_rounds(&second, at);
            }
            sha_x86_end(&first);
            sha_x86_end(&second);
        }
        sha_x86_close(&first, one);
        sha_x86_close(&second, other);
    }

    static int sha_has_fast(void) {
        unsigned a, b, c, d;
        if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_SSSE3) || !(c & bit_SSE4_1)) return 0;
        return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA);
    }
    #elif defined(__aarch64__) && defined(__ARM_NEON) && !defined(__ARM_BIG_ENDIAN)
    #include <arm_neon.h>
    #include <sys/auxv.h>

    /* An instruction takes four rounds, with the state in order: (A, B, C, D) and (E, F, G, H), the first lowest. */
    #define SHA_ARM __attribute__((target("+crypto")))  /* what arm_neon.h of GCC before 13 asks for */

    #define SHA_ARM_INLINE SHA_ARM static inline __attribute__((always_inline))

    typedef struct { uint32x4_t abcd, efgh, abcd_before, efgh_before, w[4]; } sha_arm_lane;

    SHA_ARM_INLINE void sha_arm_begin(sha_arm_lane *lane, const uint8_t *data) {
        lane->abcd_before = lane->abcd;
        lane->efgh_before = lane->efgh;
        for (int at = 0; at < 4; at++) lane->w[at] = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(data + 16 * at)));
    }

    SHA_ARM_INLINE void sha_arm_rounds(sha_arm_lane *lane, int at) {  /* four of them */
        uint32x4_t *w = lane->w, last = lane->abcd;
        uint32x4_t sum = vaddq_u32(w[at % 4], vld1q_u32(sha_constant + 4 * at));
        lane->abcd = vsha256hq_u32(lane->abcd, lane->efgh, sum);
        lane->efgh = vsha256h2q_u32(lane->efgh, last, sum);
        if (at < 12)
            w[at % 4] = vsha256su1q_u32(
                vsha256su0q_u32(w[at % 4], w[(at + 1) % 4]), w[(at + 2) % 4], w[(at + 3) % 4]);
    }

    SHA_ARM_INLINE void sha_arm_end(sha_arm_lane *lane) {
        lane->abcd = vaddq_u32(lane->abcd, lane->abcd_before);
        lane->efgh = vaddq_u32(lane->efgh, lane->efgh_before);
    }

    SHA_ARM static void sha_fast(uint32_t *state, const uint8_t *data, size_t blocks) {
        sha_arm_lane lane;
        lane.abcd = vld1q_u32(state);
        lane.efgh = vld1q_u32(state + 4);
        for (; blocks; blocks--, data += 64) {
            SHA_AHEAD(data);
            sha_arm_begin(&lane, data);
            #pragma GCC unroll 16
            for (int at = 0; at < 16; at++) sha_arm_rounds(&lane, at);
            sha_arm_end(&lane);
        }
        vst1q_u32(state, lane.abcd);
        vst1q_u32(state + 4, lane.efgh);
    }

    SHA_ARM static void sha_fast_two(
        uint32_t *one, const uint8_t *one_data, uint32_t *other, const uint8_t *other_data, size_t blocks
    ) {
        sha_arm_lane first, second;
        first.abcd = vld1q_u32(one);
        first.efgh = vld1q_u32(one + 4);
        second.abcd = vld1q_u32(other);
        second.efgh = vld1q_u32(other + 4);
        for (; blocks; blocks--, one_data += 64, other_data += 64) {
            SHA_AHEAD(one_data);
            SHA_AHEAD(other_data);
            sha_arm_begin(&first, one_data);
            sha_arm_begin(&second, other_data);
            #pragma GCC unroll 16
            for (int at = 0; at < 16; at++) {
                sha_arm_rounds(&first, at);
                sha_arm_rounds(&second, at);
            }
            sha_arm_end(&first);
            sha_arm_end(&second);
        }
        vst1q_u32(one, first.abcd);
        vst1q_u32(one + 4, first.efgh);
        vst1q_u32(other, second.abcd);
        vst1q_u32(other + 4, second.efgh);
    }

    static int sha_has_fast(void) {
        return (getauxval(AT_HWCAP) & 1 << 6) != 0;  /* HWCAP_SHA2 */
    }
    #else
    #define sha_fast NULL
    #define sha_fast_two NULL
    static int sha_has_fast(void) { return 0; }
    #endif
    """
    # (state of 8 words, data, how many blocks of 64 bytes it holds)
    ctypedef void (*sha_absorber)(uint32_t*, const uint8_t*, size_t) noexcept nogil
    # (state, data, another state, data as long, how many blocks each holds)
    ctypedef void (*sha_absorber_two)(uint32_t*, const uint8_t*, uint32_t*, const uint8_t*, size_t) noexcept nogil
    const uint32_t[8] sha_start
    sha_absorber sha_plain
    sha_absorber sha_fast
    sha_absorber_two sha_plain_two
    sha_absorber_two sha_fast_two
    bint sha_has_fast() noexcept
