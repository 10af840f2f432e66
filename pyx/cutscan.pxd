# cython: language_level=3
"""Find where a chunk may end, 64 bytes a step, with whatever the processor has (inline-only).

What is computed is in chunking.pyx. A step takes 64 bytes to 64 fingerprints and two masks of 64 bits, one for each of
the conditions that nearly every place fails; the places that meet both are looked at one by one. There is no other
loop over bytes, so that the cost doesn't depend on the content.
"""
from libc.stdint cimport uint8_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    #define CUT_MULTIPLIER 0x129348bf9b689ddULL  /* degree 56: a product's byte depends on 8 bytes */
    #define CUT_STEP 64
    #define CUT_BEHIND 128                       /* two steps: more than the 66 bytes that decide */
    #define CUT_INLINE static inline __attribute__((always_inline))

    /* A chunk may end after a byte whose fingerprint is at most `low`, the one before it at least `high`, and the one
       before that at most `third`. */
    typedef struct { uint8_t low, high, third; } cut_limit;
    typedef uint64_t (*cut_finder)(
        const uint8_t *, uint64_t, uint64_t, uint64_t, const cut_limit *, const cut_limit *);

    static uint64_t cut_product[256];  /* byte times CUT_MULTIPLIER, without carries */

    static void cut_fill_product(void) {
        for (int byte = 0; byte < 256; byte++) {
            cut_product[byte] = 0;
            for (int bit = 0; bit < 8; bit++)
                if (byte >> bit & 1) cut_product[byte] ^= CUT_MULTIPLIER << bit;
        }
    }

    /* The end of the chunk among a step's candidates, given the fingerprints of the last step and this one; 0: none. */
    static __attribute__((noinline)) uint64_t cut_choose(
        uint64_t candidates, const uint8_t *fingerprint, uint64_t base, uint64_t from, uint64_t end,
        uint64_t middle, const cut_limit *strict, const cut_limit *loose
    ) {
        for (; candidates; candidates &= candidates - 1) {
            int bit = __builtin_ctzll(candidates);
            uint64_t at = base + bit;
            const cut_limit *limit = at < middle ? strict : loose;
            const uint8_t *own = fingerprint + CUT_STEP + bit;
            if (at >= from && at < end && own[0] <= limit->low && own[-1] >= limit->high && own[-2] <= limit->third)
                return at + 1;
        }
        return 0;
    }

    /* NAME_step(state, bytes, limit, &high) gives the mask of the first condition; NAME_show writes the fingerprints
       of a step. The first two steps only fill the state; the second one's very last place is `from`. */
    #define CUT_FINDER(NAME)                                                                                     \\
    NAME##_TARGET static uint64_t NAME##_find(const uint8_t *data, uint64_t from, uint64_t end, uint64_t middle, \\
                                              const cut_limit *strict, const cut_limit *loose) {                 \\
        NAME##_state state;                                                                                      \\
        uint8_t shown[2 * CUT_STEP], rest[CUT_STEP];                                                             \\
        uint64_t found, low, high, before = 0;                                                                   \\
        memset(&state, 0, sizeof(state));                                                                        \\
        for (uint64_t base = from - (CUT_BEHIND - 1); base < end; base += CUT_STEP) {                            \\
            const uint8_t *bytes = data + base;                                                                  \\
            if (__builtin_expect(end - base < CUT_STEP, 0)) {                                                    \\
                memset(rest, 0, CUT_STEP);                                                                       \\
                memcpy(rest, bytes, end - base);                                                                 \\
                bytes = rest;                                                                                    \\
            }                                                                                                    \\
            low = NAME##_step(&state, bytes, loose, &high);                                                      \\
            low &= high << 1 | before >> 63;                                                                     \\
            before = high;                                                                                       \\
            if (__builtin_expect(low != 0, 0)) {                                                                 \\
                NAME##_show(&state, shown);                                                                      \\
                found = cut_choose(low, shown, base, from, end, middle, strict, loose);                          \\
                if (found) return found;                                                                         \\
            }                                                                                                    \\
        }                                                                                                        \\
        return 0;                                                                                                \\
    }

    #define plain_TARGET
    typedef struct {
        uint64_t carry;
        uint8_t product[8 + CUT_STEP], pair[16 + CUT_STEP], quad[32 + CUT_STEP], fingerprint[2 * CUT_STEP];
    } plain_state;

    /* Each sum's array starts with what it needs of the step before. */
    CUT_INLINE uint64_t plain_step(
        plain_state *state, const uint8_t *bytes, const cut_limit *limit, uint64_t *high
    ) {
        const uint8_t *own = state->fingerprint + CUT_STEP;
        uint8_t met[CUT_STEP];
        uint64_t low = 0, eight;
        memcpy(state->product, state->product + CUT_STEP, 8);
        memcpy(state->pair, state->pair + CUT_STEP, 16);
        memcpy(state->quad, state->quad + CUT_STEP, 32);
        memcpy(state->fingerprint, own, CUT_STEP);
        for (int at = 0; at < CUT_STEP; at += 8) {
            uint64_t first = state->carry ^ cut_product[bytes[at]], following = 0;
            for (int place = 1; place < 8; place++) {
                uint64_t one = cut_product[bytes[at + place]];
                first ^= one << 8 * place;
                following ^= one >> (64 - 8 * place);
            }
            state->carry = following;
            memcpy(state->product + 8 + at, &first, 8);
        }
        for (int at = 0; at < CUT_STEP; at++) state->pair[16 + at] = state->product[8 + at] + 3 * state->product[at];
        for (int at = 0; at < CUT_STEP; at++) state->quad[32 + at] = state->pair[16 + at] + 3 * state->pair[at];
        for (int at = 0; at < CUT_STEP; at++)
            state->fingerprint[CUT_STEP + at] = state->quad[32 + at] + 3 * state->quad[at];
        for (int at = 0; at < CUT_STEP; at++) met[at] = (own[at] <= limit->low) & (own[at - 1] >= limit->high);
        for (int at = 0; at < CUT_STEP; at += 8) {
            memcpy(&eight, met + at, 8);
            low |= eight;
        }
        *high = ~0ULL;  /* both conditions are in the result */
        if (!low) return 0;
        low = 0;
        for (int at = 0; at < CUT_STEP; at++) low |= (uint64_t)met[at] << at;
        return low;
    }

    CUT_INLINE void plain_show(const plain_state *state, uint8_t *shown) {
        memcpy(shown, state->fingerprint, 2 * CUT_STEP);
    }

    CUT_FINDER(plain)

    #if defined(__x86_64__)
    #include <immintrin.h>

    /* The product of 16 bytes x0, x1 by the multiplier: [x0 low, x0 high] ^ [x1 high of the 16 before, x1 low]. */
    #define pclmul_TARGET __attribute__((target("pclmul,ssse3")))
    #define ADD_THRICE_128(a, b) _mm_add_epi8(a, _mm_add_epi8(b, _mm_add_epi8(b, b)))
    typedef struct { __m128i carried, product, pair, quad[2], last[4], fingerprint[4]; } pclmul_state;

    pclmul_TARGET CUT_INLINE uint64_t pclmul_step(
        pclmul_state *state, const uint8_t *bytes, const cut_limit *limit, uint64_t *high
    ) {
        const __m128i multiplier = _mm_set_epi64x(0, CUT_MULTIPLIER);
        const __m128i lowest = _mm_set1_epi8((char)limit->low), highest = _mm_set1_epi8((char)limit->high);
        uint64_t low = 0;
        *high = 0;
        for (int part = 0; part < 4; part++) {
            __m128i taken = _mm_loadu_si128((const __m128i *)(bytes + 16 * part));
            __m128i even = _mm_clmulepi64_si128(taken, multiplier, 0);
            __m128i odd = _mm_clmulepi64_si128(taken, multiplier, 1);
            __m128i product = _mm_xor_si128(even, _mm_alignr_epi8(odd, state->carried, 8));
            __m128i pair = ADD_THRICE_128(product, _mm_alignr_epi8(product, state->product, 8));
            __m128i quad = ADD_THRICE_128(pair, state->pair);
            __m128i fingerprint = ADD_THRICE_128(quad, state->quad[part % 2]);  /* that of two parts before */
            state->carried = odd;
            state->product = product;
            state->pair = pair;
            state->quad[part % 2] = quad;
            state->last[part] = state->fingerprint[part];
            state->fingerprint[part] = fingerprint;
            __m128i met = _mm_cmpeq_epi8(_mm_min_epu8(fingerprint, lowest), fingerprint);
            low |= (uint64_t)(uint32_t)_mm_movemask_epi8(met) << 16 * part;
            met = _mm_cmpeq_epi8(_mm_max_epu8(fingerprint, highest), fingerprint);
            *high |= (uint64_t)(uint32_t)_mm_movemask_epi8(met) << 16 * part;
        }
        return low;
    }

    pclmul_TARGET CUT_INLINE void pclmul_show(const pclmul_state *state, uint8_t *shown) {
        memcpy(shown, state->last, CUT_STEP);
        memcpy(shown + CUT_STEP, state->fingerprint, CUT_STEP);
    }

    CUT_FINDER(pclmul)

    #define avx2_TARGET __attribute__((target("avx2,vpclmulqdq")))
    #define ADD_THRICE_256(a, b) _mm256_add_epi8(a, _mm256_add_epi8(b, _mm256_add_epi8(b, b)))
    typedef struct { __m256i carried, product, pair, quad, last[2], fingerprint[2]; } avx2_state;

    avx2_TARGET CUT_INLINE uint64_t avx2_step(
        avx2_state *state, const uint8_t *bytes, const cut_limit *limit, uint64_t *high
    ) {
        const __m256i multiplier = _mm256_set1_epi64x(CUT_MULTIPLIER);
        const __m256i lowest = _mm256_set1_epi8((char)limit->low), highest = _mm256_set1_epi8((char)limit->high);
        uint64_t low = 0;
        *high = 0;
        for (int part = 0; part < 2; part++) {
            __m256i taken = _mm256_loadu_si256((const __m256i *)(bytes + 32 * part));
            __m256i even = _mm256_clmulepi64_epi128(taken, multiplier, 0);
            __m256i odd = _mm256_clmulepi64_epi128(taken, multiplier, 1);
            __m256i between = _mm256_permute2x128_si256(state->carried, odd, 0x21);
            __m256i product = _mm256_xor_si256(even, _mm256_alignr_epi8(odd, between, 8));
            between = _mm256_permute2x128_si256(state->product, product, 0x21);
            __m256i pair = ADD_THRICE_256(product, _mm256_alignr_epi8(product, between, 8));
            __m256i quad = ADD_THRICE_256(pair, _mm256_permute2x128_si256(state->pair, pair, 0x21));
            __m256i fingerprint = ADD_THRICE_256(quad, state->quad);
            state->carried = odd;
            state->product = product;
            state->pair = pair;
            state->quad = quad;
            state->last[part] = state->fingerprint[part];
            state->fingerprint[part] = fingerprint;
            __m256i met = _mm256_cmpeq_epi8(_mm256_min_epu8(fingerprint, lowest), fingerprint);
            low |= (uint64_t)(uint32_t)_mm256_movemask_epi8(met) << 32 * part;
            met = _mm256_cmpeq_epi8(_mm256_max_epu8(fingerprint, highest), fingerprint);
            *high |= (uint64_t)(uint32_t)_mm256_movemask_epi8(met) << 32 * part;
        }
        return low;
    }

    avx2_TARGET CUT_INLINE void avx2_show(const avx2_state *state, uint8_t *shown) {
        memcpy(shown, state->last, CUT_STEP);
        memcpy(shown + CUT_STEP, state->fingerprint, CUT_STEP);
    }

    CUT_FINDER(avx2)

    #define avx512_TARGET __attribute__((target("avx512f,avx512bw,vpclmulqdq")))
    #define ADD_THRICE_512(a, b) _mm512_add_epi8(a, _mm512_add_epi8(b, _mm512_add_epi8(b, b)))
    typedef struct { __m512i carried, product, pair, quad, last, fingerprint; } avx512_state;

    avx512_TARGET CUT_INLINE uint64_t avx512_step(
        avx512_state *state, const uint8_t *bytes, const cut_limit *limit, uint64_t *high
    ) {
        const __m512i multiplier = _mm512_set1_epi64(CUT_MULTIPLIER);
        __m512i taken = _mm512_loadu_si512(bytes);
        __m512i even = _mm512_clmulepi64_epi128(taken, multiplier, 0);
        __m512i odd = _mm512_clmulepi64_epi128(taken, multiplier, 1);
        __m512i product = _mm512_xor_si512(even, _mm512_alignr_epi64(odd, state->carried, 7));
        __m512i pair = ADD_THRICE_512(product, _mm512_alignr_epi64(product, state->product, 7));
        __m512i quad = ADD_THRICE_512(pair, _mm512_alignr_epi64(pair, state->pair, 6));
        state->last = state->fingerprint;
        state->fingerprint = ADD_THRICE_512(quad, _mm512_alignr_epi64(quad, state->quad, 4));
        state->carried = odd;
        state->product = product;
        state->pair = pair;
        state->quad = quad;
        *high = _mm512_cmpge_epu8_mask(state->fingerprint, _mm512_set1_epi8((char)limit->high));
        return _mm512_cmple_epu8_mask(state->fingerprint, _mm512_set1_epi8((char)limit->low));
    }

    avx512_TARGET CUT_INLINE void avx512_show(const avx512_state *state, uint8_t *shown) {
        _mm512_storeu_si512(shown, state->last);
        _mm512_storeu_si512(shown + CUT_STEP, state->fingerprint);
    }

    CUT_FINDER(avx512)

    static int cut_has_avx512(void) {
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
            && __builtin_cpu_supports("vpclmulqdq");
    }
    static int cut_has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("vpclmulqdq"); }
    static int cut_has_pclmul(void) { return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("ssse3"); }
    #else
    #define avx512_find NULL
    #define avx2_find NULL
    #define pclmul_find NULL
    static int cut_has_avx512(void) { return 0; }
    static int cut_has_avx2(void) { return 0; }
    static int cut_has_pclmul(void) { return 0; }
    #endif

    /* Read a byte of every cache line. */
    static void cut_touch(const uint8_t *data, uint64_t size) {
        uint8_t total = 0;
        for (uint64_t at = 0; at < size; at += 64) total += data[at];
        __asm__ volatile("" : : "r"(total));
    }
    """
    ctypedef struct cut_limit:
        uint8_t low
        uint8_t high
        uint8_t third
    # (data, first place that may be the last byte, end, from where the limit is loose, strict, loose): size or 0
    ctypedef uint64_t (*cut_finder)(
        const uint8_t*, uint64_t, uint64_t, uint64_t, const cut_limit*, const cut_limit*
    ) noexcept nogil
    const uint64_t[256] cut_product
    void cut_fill_product() noexcept
    cut_finder plain_find
    cut_finder pclmul_find
    cut_finder avx2_find
    cut_finder avx512_find
    bint cut_has_avx512() noexcept
    bint cut_has_avx2() noexcept
    bint cut_has_pclmul() noexcept
    void cut_touch(const uint8_t* data, uint64_t size) noexcept nogil
    enum:
        CUT_BEHIND
