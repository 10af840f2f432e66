# cython: language_level=3
"""BLAKE3 of many small inputs at once, each lane of a vector at a block of its own (inline-only).

The specification's tree, level by level: first the chunks of every input, then the parents of every input, pair by
pair (an odd node goes up as it is, which gives the same tree as splitting off the largest power of two). A lane that
is done with its chunk takes the next one, so that inputs of any length fill the lanes.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    #define BLAKE_BLOCK 64
    #define BLAKE_CHUNK 1024
    #define BLAKE_CHUNK_START 1
    #define BLAKE_CHUNK_END 2
    #define BLAKE_PARENT 4
    #define BLAKE_ROOT 8
    #define BLAKE_INLINE static inline __attribute__((always_inline))

    /* A chunk or a parent to be compressed to a chaining value. */
    typedef struct {
        const uint8_t *bytes;   /* readable to the end of the last block, with zeros after the input */
        uint8_t *into;          /* 32 bytes; read by no job that comes later */
        uint32_t length, counter, start, end;   /* flags of the first block, and of the last */
    } blake_job;
    typedef void (*blake_runner)(const blake_job *, size_t);

    static const uint32_t blake_start[8] = {
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    static const uint8_t blake_nothing[BLAKE_BLOCK] = {0};
    static const uint8_t blake_order[7][16] = {
        {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
        {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8},
        {3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1},
        {10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6},
        {12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4},
        {9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7},
        {11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13}};

    #define BLAKE_TURN(x, n) ((x) >> (n) | (x) << (32 - (n)))
    #define BLAKE_MIX(a, b, c, d, x, y) do { \\
        v[a] += v[b] + (x); v[d] ^= v[a]; v[d] = BLAKE_TURN(v[d], 16); \\
        v[c] += v[d]; v[b] ^= v[c]; v[b] = BLAKE_TURN(v[b], 12); \\
        v[a] += v[b] + (y); v[d] ^= v[a]; v[d] = BLAKE_TURN(v[d], 8); \\
        v[c] += v[d]; v[b] ^= v[c]; v[b] = BLAKE_TURN(v[b], 7); \\
    } while (0)

    /* Swap the off-diagonal blocks of STEP by STEP words, which for all steps makes rows columns. */
    #define BLAKE_SWAP(VECTOR, LANES, STEP, LOW, HIGH) \\
        for (int i = 0; i < LANES; i++) \\
            if (!(i & STEP)) { \\
                VECTOR low = __builtin_shuffle(row[i], row[i + STEP], (VECTOR)LOW); \\
                row[i + STEP] = __builtin_shuffle(row[i], row[i + STEP], (VECTOR)HIGH); \\
                row[i] = low; \\
            }

    #define BLAKE_RUNNER(NAME, LANES, TARGET) \\
    typedef uint32_t NAME##_vector __attribute__((vector_size(4 * LANES))); \\
    BLAKE_INLINE TARGET void NAME##_turn(NAME##_vector *row); \\
    BLAKE_INLINE TARGET void NAME##_compress( \\
        NAME##_vector *cv, const uint8_t *const *bytes, NAME##_vector counter, NAME##_vector length, \\
        NAME##_vector flags) { \\
        NAME##_vector word[16], zero = {0}, v[16]; \\
        for (int from = 0; from < 16; from += LANES) { \\
            for (int lane = 0; lane < LANES; lane++) memcpy(&word[from + lane], bytes[lane] + 4 * from, 4 * LANES); \\
            NAME##_turn(word + from); \\
        } \\
        for (int i = 0; i < 8; i++) v[i] = cv[i]; \\
        for (int i = 0; i < 4; i++) v[8 + i] = zero + blake_start[i]; \\
        v[12] = counter; v[13] = zero; v[14] = length; v[15] = flags; \\
        _Pragma("GCC unroll 7") \\
        for (int round = 0; round < 7; round++) { \\
            const uint8_t *at = blake_order[round]; \\
            BLAKE_MIX(0, 4, 8, 12, word[at[0]], word[at[1]]); \\
            BLAKE_MIX(1, 5, 9, 13, word[at[2]], word[at[3]]); \\
            BLAKE_MIX(2, 6, 10, 14, word[at[4]], word[at[5]]); \\
            BLAKE_MIX(3, 7, 11, 15, word[at[6]], word[at[7]]); \\
            BLAKE_MIX(0, 5, 10, 15, word[at[8]], word[at[9]]); \\
            BLAKE_MIX(1, 6, 11, 12, word[at[10]], word[at[11]]); \\
            BLAKE_MIX(2, 7, 8, 13, word[at[12]], word[at[13]]); \\
            BLAKE_MIX(3, 4, 9, 14, word[at[14]], word[at[15]]); \\
        } \\
        for (int i = 0; i < 8; i++) cv[i] = v[i] ^ v[i + 8]; \\
    } \\
    TARGET static void NAME##_run(const blake_job *jobs, size_t count) { \\
        union { NAME##_vector vector[8]; uint32_t word[8][LANES]; } cv; \\
        union { NAME##_vector vector; uint32_t word[LANES]; } counter, length, flags; \\
        const blake_job *own[LANES]; \\
        const uint8_t *bytes[LANES]; \\
        uint32_t left[LANES], pace[LANES];   /* blocks to go; a lane without a job stays where it is */ \\
        size_t next = 0, done = 0; \\
        memset(&cv, 0, sizeof(cv)); \\
        memset(own, 0, sizeof(own)); \\
        while (done < count) { \\
            uint32_t steps = BLAKE_CHUNK / BLAKE_BLOCK; \\
            for (int lane = 0; lane < LANES; lane++) { \\
                if (own[lane] == NULL) { \\
                    const blake_job *job = next < count ? &jobs[next++] : NULL; \\
                    own[lane] = job; \\
                    bytes[lane] = job ? job->bytes : blake_nothing; \\
                    left[lane] = !job || !job->length ? 1 : (job->length + BLAKE_BLOCK - 1) / BLAKE_BLOCK; \\
                    pace[lane] = job ? BLAKE_BLOCK : 0; \\
                    counter.word[lane] = job ? job->counter : 0; \\
                    flags.word[lane] = job ? job->start : 0; \\
                    length.word[lane] = BLAKE_BLOCK; \\
                    for (int i = 0; i < 8; i++) cv.word[i][lane] = blake_start[i]; \\
                } \\
                if (own[lane] != NULL && left[lane] < steps) steps = left[lane]; \\
            } \\
            for (uint32_t step = 0; step < steps; step++) { \\
                if (step + 1 == steps) \\
                    for (int lane = 0; lane < LANES; lane++) \\
                        if (own[lane] != NULL && left[lane] == steps) { \\
                            flags.word[lane] |= own[lane]->end; \\
                            length.word[lane] = own[lane]->length - (own[lane]->length ? \\
                                (own[lane]->length - 1) / BLAKE_BLOCK * BLAKE_BLOCK : 0); \\
                        } \\
                NAME##_compress(cv.vector, bytes, counter.vector, length.vector, flags.vector); \\
                memset(&flags, 0, sizeof(flags)); \\
                for (int lane = 0; lane < LANES; lane++) bytes[lane] += pace[lane]; \\
            } \\
            for (int lane = 0; lane < LANES; lane++) { \\
                if (own[lane] == NULL) continue; \\
                left[lane] -= steps; \\
                if (left[lane]) continue; \\
                for (int i = 0; i < 8; i++) memcpy(own[lane]->into + 4 * i, &cv.word[i][lane], 4); \\
                own[lane] = NULL; \\
                done++; \\
            } \\
        } \\
    }

    #if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
    #define BLAKE_WIDE __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
    #define BLAKE_HALF __attribute__((target("avx2")))
    BLAKE_RUNNER(blake_wide, 16, BLAKE_WIDE)
    BLAKE_RUNNER(blake_half, 8, BLAKE_HALF)
    #define LIST(...) {__VA_ARGS__}
    BLAKE_WIDE void blake_wide_turn(blake_wide_vector *row) {
        BLAKE_SWAP(blake_wide_vector, 16, 1, LIST(0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30),
                   LIST(1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31))
        BLAKE_SWAP(blake_wide_vector, 16, 2, LIST(0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29),
                   LIST(2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
        BLAKE_SWAP(blake_wide_vector, 16, 4, LIST(0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27),
                   LIST(4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
        BLAKE_SWAP(blake_wide_vector, 16, 8, LIST(0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
                   LIST(8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
    }
    BLAKE_HALF void blake_half_turn(blake_half_vector *row) {
        BLAKE_SWAP(blake_half_vector, 8, 1, LIST(0, 8, 2, 10, 4, 12, 6, 14), LIST(1, 9, 3, 11, 5, 13, 7, 15))
        BLAKE_SWAP(blake_half_vector, 8, 2, LIST(0, 1, 8, 9, 4, 5, 12, 13), LIST(2, 3, 10, 11, 6, 7, 14, 15))
        BLAKE_SWAP(blake_half_vector, 8, 4, LIST(0, 1, 2, 3, 8, 9, 10, 11), LIST(4, 5, 6, 7, 12, 13, 14, 15))
    }
    #undef LIST
    static int blake_lanes(void) {
        __builtin_cpu_init();
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
            && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) return 16;
        return __builtin_cpu_supports("avx2") ? 8 : 0;
    }
    static blake_runner blake_choose(int lanes) {
        return lanes == 16 ? blake_wide_run : lanes == 8 ? blake_half_run : NULL;
    }
    #else
    static int blake_lanes(void) { return 0; }
    static blake_runner blake_choose(int lanes) { return NULL; }
    #endif
    """
    ctypedef struct blake_job:
        const uint8_t* bytes
        uint8_t* into
        uint32_t length
        uint32_t counter
        uint32_t start
        uint32_t end
    ctypedef void (*blake_runner)(const blake_job*, size_t) noexcept nogil
    int blake_lanes() nogil          # the most that this processor has a runner for; 0: none
    blake_runner blake_choose(int lanes) nogil
    const uint8_t* blake_nothing
    uint32_t BLAKE_CHUNK_START, BLAKE_CHUNK_END, BLAKE_PARENT, BLAKE_ROOT

cdef enum:
    BLAKE_CHUNK_BYTES = 1024
    BLAKE_VALUE_BYTES = 32
    BLAKE_CHUNKS = 2048       # of a batch
    BLAKE_INPUTS = 1024       # of a batch

cdef struct batch_t:
    blake_runner run
    blake_job jobs[BLAKE_CHUNKS]
    uint8_t values[BLAKE_CHUNKS * BLAKE_VALUE_BYTES]
    uint8_t* into[BLAKE_INPUTS]       # where each input's hash belongs
    uint32_t first[BLAKE_INPUTS]      # its first node in values
    uint32_t nodes[BLAKE_INPUTS]      # how many it has at the level that was computed last
    size_t inputs
    size_t whole              # chunks, whose jobs are the first
    size_t rests              # shorter ones, whose jobs are the last

cdef inline bint add_input(batch_t* batch, const uint8_t* bytes, uint64_t length, uint8_t* into) noexcept nogil:
    """Put an input into the batch, where it stays until the next run_batch; False where there is no room.

    It must be readable to the next multiple of 64 bytes, with zeros behind it.
    """
    cdef uint64_t chunks = (length + BLAKE_CHUNK_BYTES - 1) // BLAKE_CHUNK_BYTES if length else 1
    cdef uint64_t index
    cdef blake_job* job
    if batch.inputs == BLAKE_INPUTS or chunks > BLAKE_CHUNKS - batch.whole - batch.rests:
        return False
    batch.into[batch.inputs] = into
    batch.first[batch.inputs] = <uint32_t>(batch.whole + batch.rests)
    batch.nodes[batch.inputs] = <uint32_t>chunks
    for index in range(chunks):
        into = batch.values + (batch.whole + batch.rests) * BLAKE_VALUE_BYTES
        # Whole chunks keep step with each other; the ends of inputs do not, and are kept from between them.
        if length - index * BLAKE_CHUNK_BYTES >= BLAKE_CHUNK_BYTES:
            job = &batch.jobs[batch.whole]
            batch.whole += 1
        else:
            batch.rests += 1
            job = &batch.jobs[BLAKE_CHUNKS - batch.rests]
        job.bytes = bytes + index * BLAKE_CHUNK_BYTES if length else blake_nothing
        job.into = into if chunks > 1 else batch.into[batch.inputs]
        job.length = <uint32_t>min(length - index * BLAKE_CHUNK_BYTES, <uint64_t>BLAKE_CHUNK_BYTES)
        job.counter = <uint32_t>index
        job.start = BLAKE_CHUNK_START
        job.end = BLAKE_CHUNK_END if chunks > 1 else BLAKE_CHUNK_END | BLAKE_ROOT
    batch.inputs += 1
    return True

cdef inline size_t pair_nodes(batch_t* batch, size_t input, blake_job* jobs) noexcept nogil:
    """Make the jobs of an input's next level; an odd node follows the parents. Returns how many jobs."""
    cdef uint8_t* values = batch.values + batch.first[input] * <size_t>BLAKE_VALUE_BYTES
    cdef size_t nodes = batch.nodes[input], pair
    for pair in range(nodes // 2):
        jobs[pair].bytes = values + 2 * pair * BLAKE_VALUE_BYTES
        jobs[pair].into = values + pair * BLAKE_VALUE_BYTES if nodes > 2 else batch.into[input]
        jobs[pair].length = 2 * BLAKE_VALUE_BYTES
        jobs[pair].counter = 0
        jobs[pair].start = BLAKE_PARENT
        jobs[pair].end = 0 if nodes > 2 else BLAKE_ROOT
    return nodes // 2

cdef inline void run_batch(batch_t* batch) noexcept nogil:
    """Hash every input of the batch, and empty it."""
    cdef size_t input, jobs, nodes
    cdef uint8_t* values
    batch.run(batch.jobs, batch.whole)
    batch.run(&batch.jobs[BLAKE_CHUNKS - batch.rests], batch.rests)
    while True:
        jobs = 0
        for input in range(batch.inputs):
            if batch.nodes[input] > 1:
                jobs += pair_nodes(batch, input, &batch.jobs[jobs])
        if jobs == 0:
            break
        batch.run(batch.jobs, jobs)
        for input in range(batch.inputs):
            nodes = batch.nodes[input]
            if nodes > 1 and nodes % 2:
                values = batch.values + batch.first[input] * <size_t>BLAKE_VALUE_BYTES
                memcpy(
                    values + nodes // 2 * BLAKE_VALUE_BYTES, values + (nodes - 1) * BLAKE_VALUE_BYTES, BLAKE_VALUE_BYTES
                )
            batch.nodes[input] = <uint32_t>((nodes + 1) // 2)
    batch.inputs = batch.whole = batch.rests = 0
