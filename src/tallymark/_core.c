/* The fast way to record: one call that validates, encodes and writes the usual record.
 *
 * Everything unusual (a series or a metadata key that was not seen before, nesting, values that need care or look as if
 * they were private, no room) is left to the Python function that the fast way stands in for, with nothing changed; it also words the errors. The
 * two must agree on what they write; the tests run with and without this module.
 *
 * Why it needs no lock: from the moment a lane is looked at until the entry is complete, no Python code can run (only
 * exact built-in types are touched, and nothing that the garbage collector tracks is allocated), so with the GIL held
 * no thread, signal handler or finaliser can come in between.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#define ENTRY_SIZE 40
#define KIND_RECORD 1
#define MAX_KEYS 64
#define MAX_METADATA_BYTES 16384
#define MAX_ERROR_LENGTH 1000
#define MAX_ID_LENGTH 128
#define MAX_DURATION_MS (10 * 366 * 86400000.0)

/* CRC-32 as zlib computes it, eight bytes at a time (Kounavis and Berry, "slicing-by-8"). */
static uint32_t crc_table[8][256];

static void make_crc_table(void)
{
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t c = n;
        for (int k = 0; k < 8; k++)
            c = c & 1 ? 0xEDB88320u ^ (c >> 1) : c >> 1;
        crc_table[0][n] = c;
    }
    for (uint32_t n = 0; n < 256; n++)
        for (int k = 1; k < 8; k++)
            crc_table[k][n] = (crc_table[k - 1][n] >> 8) ^ crc_table[0][crc_table[k - 1][n] & 0xFF];
}

static uint32_t crc32_of(uint32_t crc, const unsigned char *p, Py_ssize_t n)
{
    crc = ~crc;
    while (n >= 8) {
        uint32_t lo, hi;
        memcpy(&lo, p, 4);
        memcpy(&hi, p + 4, 4);
        lo ^= crc;
        crc = crc_table[7][lo & 0xFF] ^ crc_table[6][(lo >> 8) & 0xFF] ^ crc_table[5][(lo >> 16) & 0xFF] ^
              crc_table[4][lo >> 24] ^ crc_table[3][hi & 0xFF] ^ crc_table[2][(hi >> 8) & 0xFF] ^
              crc_table[1][(hi >> 16) & 0xFF] ^ crc_table[0][hi >> 24];
        p += 8;
        n -= 8;
    }
    while (n-- > 0)
        crc = (crc >> 8) ^ crc_table[0][(crc ^ *p++) & 0xFF];
    return ~crc;
}

/* Whether Python has to look at a text: where this says no, no privacy rule finds anything in it (privacy.py has the
 * rules, and decides), and it holds no NUL (model.clean_text replaces it). A rule finds nothing that begins inside a
 * word, so a word is looked at where it begins; what is found there does not have to be right. */
enum { DIGIT = 1, UPPER = 2, LOWER = 4, WORD = DIGIT | UPPER | LOWER, RARE = 8 };
static unsigned char kinds[256];

/* The IBANs of each country, as in privacy.py. */
static const char ibans[] =
    "AD24AE23AL28AT20AZ28BA20BE16BG22BH22BI27BR29BY28CH21CR22CY28CZ24DE22DJ27DK18DO28EE20EG29ES24FI18FK18FO18FR27GB22"
    "GE22GI23GL18GR27GT28HN28HR21HU28IE22IL23IQ23IS26IT27JO30KW30KZ20LB28LC32LI21LT20LU20LV21LY25MC27MD24ME22MK19MN20"
    "MR27MT31MU30NI28NL18NO15OM23PK24PL28PS29PT25QA29RO24RS22RU33SA24SC31SD18SE24SI19SK24SM27SO23ST25SV28TL23TN24TR26"
    "UA29VA22VG24XK20YE30";
static unsigned char iban_lengths[32][32];

/* What other secrets begin with, by their first byte. */
static const char *const heads[] = {
    "AKIA", "ASIA", "ABIA", "ACCA", "AIza", "GOCSPX-", "PRIVATE KEY", "SG.", "dop_v1_", "doo_v1_", "dor_v1_", "dckr_pat_",
    "eyJ", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "glptt-", "gldt-", "glrt-", "glsoat-",
    "hooks.slack.com/", "hf_", "hvs.", "npm_", "pypi-", "rk_live_", "rk_test_", "sk_live_", "sk_test_", "sk-", "shpat_",
    "shpca_", "shppa_", "shpss_", "whsec_", "xox", "xapp-", "ya29.", NULL,
};
static const char *const *heads_of[256]; /* the first of those that begin with this byte */

static void make_kinds(void)
{
    for (int c = '0'; c <= '9'; c++)
        kinds[c] = DIGIT;
    for (int c = 0; c < 26; c++) {
        kinds['A' + c] = UPPER;
        kinds['a' + c] = LOWER;
    }
    kinds['@'] = kinds['%'] = kinds[0] = RARE;
    for (const char *p = ibans; *p; p += 4)
        iban_lengths[p[0] & 31][p[1] & 31] = (unsigned char)((p[2] - '0') * 10 + p[3] - '0');
    for (const char *const *head = heads; *head != NULL; head++)
        if (heads_of[(unsigned char)**head] == NULL)
            heads_of[(unsigned char)**head] = head;
}

/* Whether so many digits follow each other, with one space or dash between any two of them at most. */
static int has_digits(const unsigned char *s, const unsigned char *end, int wanted)
{
    for (; s < end; s++) {
        if (kinds[*s] & DIGIT) {
            if (--wanted == 0)
                return 1;
        } else if ((*s != ' ' && *s != '-') || !(kinds[s[-1]] & DIGIT)) {
            return 0;
        }
    }
    return 0;
}

static int has_iban(const unsigned char *s, const unsigned char *end)
{
    if (end - s < 15 || !(kinds[s[2]] & kinds[s[3]] & DIGIT) || !(kinds[s[1]] & (UPPER | LOWER)))
        return 0;
    int length = iban_lengths[s[0] & 31][s[1] & 31];
    if (length == 0)
        return 0;
    int taken = 4;
    for (s += 4; s < end && taken < length; s++) {
        if (kinds[*s] & WORD)
            taken++;
        else if ((*s != ' ' && *s != '-') || taken % 4 != 0 || !(kinds[s[-1]] & WORD))
            return 0;
    }
    return taken == length && (s == end || !(kinds[*s] & WORD));
}

static int begins_private(const unsigned char *s, const unsigned char *end)
{
    unsigned char c = *s;
    if (kinds[c] & DIGIT)
        return (c >= '3' && c <= '6' ? 1 : c == '2' && end - s > 1 && s[1] >= '2' && s[1] <= '7') &&
               has_digits(s, end, 13);
    if (has_iban(s, end))
        return 1;
    if (c == 'b' || c == 'B') /* Bearer, in upper and lower case */
        return end - s > 7 && (s[1] | 32) == 'e' && (s[2] | 32) == 'a' && (s[3] | 32) == 'r' && (s[4] | 32) == 'e' &&
               (s[5] | 32) == 'r';
    for (const char *const *head = heads_of[c]; head != NULL && *head != NULL && (unsigned char)**head == c; head++) {
        Py_ssize_t i = 1;
        while ((*head)[i] != 0 && i < end - s && (unsigned char)(*head)[i] == s[i])
            i++;
        if ((*head)[i] == 0)
            return 1;
    }
    return 0;
}

/* Whether a character that is RARE needs care: an @, however it is written, or NUL. */
static inline int is_at_or_nul(const unsigned char *s, const unsigned char *end)
{
    return *s != '%' || (end - s > 2 && s[1] == '4' && s[2] == '0');
}

static int needs_care(const unsigned char *s, Py_ssize_t n)
{
    const unsigned char *end = s + n;
    if (n <= 12) { /* of what is private, only an address or a password in a URL is so short */
        for (; s < end; s++)
            if (kinds[*s] & RARE && is_at_or_nul(s, end))
                return 1;
        return 0;
    }
    while (s < end) {
        if (kinds[*s] & WORD) {
            if (begins_private(s, end))
                return 1;
            do
                s++;
            while (s < end && kinds[*s] & WORD);
        } else {
            if (kinds[*s] & RARE && is_at_or_nul(s, end))
                return 1;
            s++;
        }
    }
    return 0;
}

/* What the writer of a lane has to know; lane.Lane adds the rest in Python. */
typedef struct {
    PyObject_HEAD
    Py_ssize_t at;   /* where the next entry goes */
    Py_ssize_t end;  /* of the entries */
    Py_ssize_t heap; /* where the next text goes */
    Py_ssize_t size; /* of the file, the end of the heap */
    PyObject *buffer;
    PyObject *series;
} LaneState;

static PyMemberDef lane_members[] = {
    {"at", T_PYSSIZET, offsetof(LaneState, at), 0, NULL},
    {"end", T_PYSSIZET, offsetof(LaneState, end), 0, NULL},
    {"heap", T_PYSSIZET, offsetof(LaneState, heap), 0, NULL},
    {"size", T_PYSSIZET, offsetof(LaneState, size), 0, NULL},
    {"buffer", T_OBJECT_EX, offsetof(LaneState, buffer), 0, NULL},
    {"series", T_OBJECT_EX, offsetof(LaneState, series), 0, NULL},
    {NULL},
};

static int lane_traverse(LaneState *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->buffer);
    Py_VISIT(self->series);
    return 0;
}

static int lane_clear(LaneState *self)
{
    Py_CLEAR(self->buffer);
    Py_CLEAR(self->series);
    return 0;
}

static void lane_dealloc(LaneState *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    lane_clear(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyType_Slot lane_slots[] = {
    {Py_tp_members, lane_members},
    {Py_tp_traverse, lane_traverse},
    {Py_tp_clear, lane_clear},
    {Py_tp_dealloc, lane_dealloc},
    {0, NULL},
};

static PyType_Spec lane_spec = {
    .name = "tallymark._core.LaneState",
    .basicsize = sizeof(LaneState),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = lane_slots,
};

static PyTypeObject *lane_type;

/* Where the texts of a record are being written; `p` is NULL once something did not fit or was unusual. */
typedef struct {
    unsigned char *p, *end;
} Out;

static inline void put(Out *out, const void *bytes, Py_ssize_t n)
{
    if (out->p == NULL || out->end - out->p < n) {
        out->p = NULL;
        return;
    }
    memcpy(out->p, bytes, n);
    out->p += n;
}

/* A str as UTF-8; NULL, with no error set, for one that UTF-8 cannot hold. */
static const char *utf8(PyObject *text, Py_ssize_t *n)
{
    if (PyUnicode_IS_COMPACT_ASCII(text)) {
        *n = PyUnicode_GET_LENGTH(text);
        return (const char *)PyUnicode_1BYTE_DATA(text);
    }
    const char *bytes = PyUnicode_AsUTF8AndSize(text, n);
    if (bytes == NULL)
        PyErr_Clear();
    return bytes;
}

static void put_json_text(Out *out, PyObject *text, int is_value)
{
    static const char hex[] = "0123456789abcdef";
    Py_ssize_t n;
    const unsigned char *s = (const unsigned char *)utf8(text, &n);
    /* Six bytes for one is the worst that escaping does. */
    if (s == NULL || out->p == NULL || (out->end - out->p - 2) / 6 < n || (is_value && needs_care(s, n))) {
        out->p = NULL;
        return;
    }
    unsigned char *p = out->p;
    *p++ = '"';
    for (Py_ssize_t i = 0; i < n; i++) {
        unsigned char c = s[i];
        if (c >= 0x20 && c != '"' && c != '\\') {
            *p++ = c;
            continue;
        }
        *p++ = '\\';
        switch (c) {
        case '"': *p++ = '"'; break;
        case '\\': *p++ = '\\'; break;
        case '\b': *p++ = 'b'; break;
        case '\f': *p++ = 'f'; break;
        case '\n': *p++ = 'n'; break;
        case '\r': *p++ = 'r'; break;
        case '\t': *p++ = 't'; break;
        default:
            memcpy(p, "u00", 3);
            p[3] = hex[c >> 4];
            p[4] = hex[c & 15];
            p += 5;
        }
    }
    *p++ = '"';
    out->p = p;
}

static void put_integer(Out *out, long long value)
{
    char digits[24], *p = digits + sizeof digits;
    unsigned long long rest = value < 0 ? 0ULL - (unsigned long long)value : (unsigned long long)value;
    do {
        *--p = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest);
    if (digits + sizeof digits - p > 12 && needs_care((unsigned char *)p, digits + sizeof digits - p)) { /* a card, as a number */
        out->p = NULL;
        return;
    }
    if (value < 0)
        *--p = '-';
    put(out, p, digits + sizeof digits - p);
}

static void put_json_value(Out *out, PyObject *value)
{
    PyTypeObject *type = Py_TYPE(value);
    if (type == &PyUnicode_Type) {
        put_json_text(out, value, 1);
    } else if (type == &PyBool_Type) {
        value == Py_True ? put(out, "true", 4) : put(out, "false", 5);
    } else if (type == &PyLong_Type) {
        int overflow;
        long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
        if (overflow)
            out->p = NULL;
        else
            put_integer(out, number);
    } else if (type == &PyFloat_Type) {
        double number = PyFloat_AS_DOUBLE(value);
        char *digits = isfinite(number) ? PyOS_double_to_string(number, 'r', 0, Py_DTSF_ADD_DOT_0, NULL) : NULL;
        if (digits == NULL) {
            PyErr_Clear();
            out->p = NULL;
            return;
        }
        put(out, digits, (Py_ssize_t)strlen(digits));
        PyMem_Free(digits);
    } else if (value == Py_None) {
        put(out, "null", 4);
    } else {
        out->p = NULL;
    }
}

static void put_metadata(Out *out, PyObject *metadata, PyObject *accepted)
{
    if (metadata == Py_None || (PyDict_CheckExact(metadata) && PyDict_GET_SIZE(metadata) == 0)) {
        put(out, "{}", 2);
        return;
    }
    if (!PyDict_CheckExact(metadata) || PyDict_GET_SIZE(metadata) > MAX_KEYS) {
        out->p = NULL;
        return;
    }
    PyObject *key, *value;
    Py_ssize_t position = 0;
    char before = '{';
    while (out->p != NULL && PyDict_Next(metadata, &position, &key, &value)) {
        if (!PyUnicode_CheckExact(key) || PySet_Contains(accepted, key) != 1) {
            out->p = NULL;
            return;
        }
        put(out, &before, 1);
        before = ',';
        put_json_text(out, key, 0); /* which was found harmless, and without NUL, when it was accepted */
        put(out, ":", 1);
        put_json_value(out, value);
    }
    put(out, "}", 1);
}

/* Writes an optional text and returns its length in bytes. */
static Py_ssize_t put_optional(Out *out, PyObject *text, Py_ssize_t longest)
{
    if (text == Py_None)
        return 0;
    Py_ssize_t n;
    const char *bytes = NULL;
    if (PyUnicode_CheckExact(text) && PyUnicode_GET_LENGTH(text) > 0 && PyUnicode_GET_LENGTH(text) <= longest &&
        !Py_UNICODE_ISSPACE(PyUnicode_READ_CHAR(text, 0))) /* an id of blanks is refused */
        bytes = utf8(text, &n);
    if (bytes == NULL || needs_care((const unsigned char *)bytes, n)) {
        out->p = NULL;
        return 0;
    }
    put(out, bytes, n);
    return n;
}

static inline unsigned char *le(unsigned char *p, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++)
        *p++ = (unsigned char)(value >> (8 * i));
    return p;
}

/* One record as the caller gave it; every field is borrowed. */
typedef struct {
    PyObject *metric_type, *name, *unit, *value, *success, *error, *metadata, *trace_id, *session_id;
    double least, most; /* what the value may be */
} Given;

/* What a recorder keeps for the fast way; Python sets the fields. */
typedef struct {
    PyObject_HEAD
    PyObject *free;     /* the lanes that nobody holds */
    PyObject *service;  /* None where the fast way must not be taken */
    PyObject *accepted; /* the metadata keys that passed */
} Pool;

static PyMemberDef pool_members[] = {
    {"free", T_OBJECT_EX, offsetof(Pool, free), 0, NULL},
    {"service", T_OBJECT_EX, offsetof(Pool, service), 0, NULL},
    {"accepted", T_OBJECT_EX, offsetof(Pool, accepted), 0, NULL},
    {NULL},
};

static int pool_traverse(Pool *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->free);
    Py_VISIT(self->service);
    Py_VISIT(self->accepted);
    return 0;
}

static int pool_clear(Pool *self)
{
    Py_CLEAR(self->free);
    Py_CLEAR(self->service);
    Py_CLEAR(self->accepted);
    return 0;
}

static void pool_dealloc(Pool *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    pool_clear(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyType_Slot pool_slots[] = {
    {Py_tp_members, pool_members},
    {Py_tp_traverse, pool_traverse},
    {Py_tp_clear, pool_clear},
    {Py_tp_dealloc, pool_dealloc},
    {0, NULL},
};

static PyType_Spec pool_spec = {
    .name = "tallymark._core.Pool",
    .basicsize = sizeof(Pool),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = pool_slots,
};

static PyTypeObject *pool_type;
static PyObject *milliseconds;      /* "ms" */
static PyObject *current_trace_id;  /* the context variable */

/* Writes the entry and its texts into the lane, or changes nothing and returns 0. Runs no Python code. */
static int write_record(LaneState *lane, PyObject *series, PyObject *accepted, const Given *given, double value,
                        int outcome, PyObject *trace_id)
{
    if (lane->at >= lane->end || lane->series == NULL || lane->buffer == NULL)
        return 0;
    PyObject *number = PyDict_GetItemWithError(lane->series, series);
    Py_buffer view;
    if (number == NULL || PyObject_GetBuffer(lane->buffer, &view, PyBUF_WRITABLE) < 0) {
        PyErr_Clear(); /* closed: after a fork, say */
        return 0;
    }
    unsigned char *base = view.buf, *text = base + lane->heap;
    Py_ssize_t room = lane->size - lane->heap;
    Out out = {text, text + (room < MAX_METADATA_BYTES ? room : MAX_METADATA_BYTES)};
    put_metadata(&out, given->metadata, accepted);
    Py_ssize_t metadata = out.p == NULL ? 0 : out.p - text;
    out.end = base + lane->size;
    Py_ssize_t error = put_optional(&out, given->error, MAX_ERROR_LENGTH);
    Py_ssize_t trace = put_optional(&out, trace_id, MAX_ID_LENGTH);
    Py_ssize_t session = put_optional(&out, given->session_id, MAX_ID_LENGTH);
    if (out.p != NULL) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        uint64_t bits;
        memcpy(&bits, &value, 8);
        unsigned char entry[ENTRY_SIZE], *p = entry + 4;
        *p++ = KIND_RECORD;
        *p++ = (unsigned char)outcome;
        p = le(p, (uint64_t)metadata, 2);
        p = le(p, (uint64_t)error, 2);
        p = le(p, (uint64_t)trace, 2);
        p = le(p, (uint64_t)session, 2);
        p = le(p, 0, 2);
        p = le(p, (uint64_t)PyLong_AsLong(number), 4);
        p = le(p, (uint64_t)lane->heap, 4);
        p = le(p, (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec, 8);
        le(p, bits, 8);
        uint32_t crc = crc32_of(0, entry + 4, ENTRY_SIZE - 4);
        le(entry, crc32_of(crc, text, out.p - text), 4);
        /* The first eight bytes last, in one store: until then nobody takes the entry for written. A process that is
         * killed at a page fault in between leaves nothing that looks like a record. */
        uint64_t head;
        memcpy(&head, entry, 8);
        memcpy(base + lane->at + 8, entry + 8, ENTRY_SIZE - 8);
        __atomic_store_n((uint64_t *)(base + lane->at), head, __ATOMIC_RELEASE);
        lane->at += ENTRY_SIZE;
        lane->heap = out.p - base;
    }
    PyBuffer_Release(&view);
    return out.p != NULL;
}

/* The fast way: 1 when the record was written, 0 when the Python code has to look at it. Never an exception. */
static int try_fast(PyObject *pool_or_other, const Given *given)
{
    if (!Py_IS_TYPE(pool_or_other, pool_type))
        return 0;
    Pool *pool = (Pool *)pool_or_other;
    if (pool->free == NULL || !PyList_CheckExact(pool->free) || pool->service == NULL ||
        !PyUnicode_CheckExact(pool->service) || pool->accepted == NULL || !PySet_CheckExact(pool->accepted) ||
        !PyUnicode_CheckExact(given->metric_type) || !PyUnicode_CheckExact(given->name) ||
        !PyUnicode_CheckExact(given->unit))
        return 0;
    double value;
    if (PyFloat_CheckExact(given->value))
        value = PyFloat_AS_DOUBLE(given->value);
    else if (PyLong_CheckExact(given->value))
        value = PyLong_AsDouble(given->value);
    else
        return 0;
    PyObject *success = given->success;
    int outcome = success == Py_True ? 2 : success == Py_False ? 1 : success == Py_None ? 0 : -1;
    if (PyErr_Occurred()) /* an integer beyond a double */
        PyErr_Clear(), outcome = -1;
    if (outcome < 0 || !(value >= given->least && value <= given->most))
        return 0;
    PyObject *trace_id = given->trace_id;
    if (trace_id != Py_None)
        Py_INCREF(trace_id);
    else if (PyContextVar_Get(current_trace_id, Py_None, &trace_id) < 0) {
        PyErr_Clear();
        return 0;
    }
    /* Making the tuple may run the garbage collector, and with it any code: nothing of a lane is known before. */
    PyObject *series = PyTuple_Pack(5, pool->service, given->metric_type, given->name, given->unit, Py_None);
    int written = 0;
    if (series == NULL) {
        PyErr_Clear();
    } else {
        Py_ssize_t n = PyList_GET_SIZE(pool->free);
        PyObject *lane = n ? PyList_GET_ITEM(pool->free, n - 1) : Py_None;
        if (PyObject_TypeCheck(lane, lane_type))
            written = write_record((LaneState *)lane, series, pool->accepted, given, value, outcome, trace_id);
        Py_DECREF(series);
    }
    Py_DECREF(trace_id);
    return written;
}

/* A method with a fast way: fast(function, is_operation) wraps a Python function and is called in its place. */
#define MAX_PARAMETERS 9

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *function;
    PyObject *names;    /* of the parameters after self */
    PyObject *defaults; /* of the last ones */
    int is_operation;
} Fast;

static PyObject *attribute_pool; /* "_pool" */
static PyObject *done;           /* what a call returns */

/* The arguments by the place of their parameter; 0 where the Python function has to word the error. */
static int sort_arguments(Fast *self, PyObject *const *args, Py_ssize_t n, PyObject *kwnames, PyObject **slots)
{
    Py_ssize_t parameters = PyTuple_GET_SIZE(self->names), optional = PyTuple_GET_SIZE(self->defaults);
    if (n > parameters)
        return 0;
    for (Py_ssize_t i = 0; i < parameters; i++)
        slots[i] = i < n ? args[i]
                   : i >= parameters - optional ? PyTuple_GET_ITEM(self->defaults, i - (parameters - optional))
                                                : NULL;
    for (Py_ssize_t k = 0; kwnames != NULL && k < PyTuple_GET_SIZE(kwnames); k++) {
        Py_ssize_t i = n;
        while (i < parameters && PyTuple_GET_ITEM(self->names, i) != PyTuple_GET_ITEM(kwnames, k))
            i++;
        if (i == parameters) /* unknown, given twice, or a name that is not interned */
            return 0;
        slots[i] = args[n + k];
    }
    for (Py_ssize_t i = 0; i < parameters; i++)
        if (slots[i] == NULL)
            return 0;
    return 1;
}

static PyObject *fast_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *kwnames)
{
    Fast *self = (Fast *)callable;
    Py_ssize_t nargs = PyVectorcall_NARGS(nargsf);
    PyObject *s[MAX_PARAMETERS];
    if (nargs >= 1 && sort_arguments(self, args + 1, nargs - 1, kwnames, s)) {
        Given given = {.metric_type = s[0], .name = s[1], .value = s[2], .most = DBL_MAX, .least = -DBL_MAX};
        if (self->is_operation) {
            given.unit = milliseconds;
            given.success = s[3];
            given.error = s[4];
            given.metadata = s[5];
            given.trace_id = given.session_id = Py_None;
            given.least = 0.0;
            given.most = MAX_DURATION_MS;
        } else {
            given.unit = s[3];
            given.success = s[4];
            given.error = s[5];
            given.metadata = s[6];
            given.trace_id = s[7];
            given.session_id = s[8];
        }
        PyObject *pool = PyObject_GetAttr(args[0], attribute_pool);
        if (pool == NULL) {
            PyErr_Clear();
        } else {
            int written = try_fast(pool, &given);
            Py_DECREF(pool);
            if (written)
                return Py_NewRef(done);
        }
    }
    return PyObject_Vectorcall(self->function, args, nargsf & ~PY_VECTORCALL_ARGUMENTS_OFFSET, kwnames);
}

static PyObject *fast_get(PyObject *self, PyObject *instance, PyObject *type)
{
    return instance == NULL ? Py_NewRef(self) : PyMethod_New(self, instance);
}

/* __doc__, __name__, __wrapped__ and the like are the function's. */
static PyObject *fast_getattro(PyObject *self, PyObject *name)
{
    PyObject *found = PyObject_GenericGetAttr(self, name);
    if (found == NULL && PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Clear();
        found = PyObject_GetAttr(((Fast *)self)->function, name);
    }
    return found;
}

static int fast_traverse(Fast *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->function);
    Py_VISIT(self->names);
    Py_VISIT(self->defaults);
    return 0;
}

static int fast_clear(Fast *self)
{
    Py_CLEAR(self->function);
    Py_CLEAR(self->names);
    Py_CLEAR(self->defaults);
    return 0;
}

static void fast_dealloc(Fast *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    fast_clear(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyMemberDef fast_members[] = {
    {"__wrapped__", T_OBJECT, offsetof(Fast, function), READONLY, NULL},
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Fast, vectorcall), READONLY, NULL},
    {NULL},
};

static PyObject *fast_doc(PyObject *self, void *unused)
{
    return PyObject_GetAttrString(((Fast *)self)->function, "__doc__");
}

static PyGetSetDef fast_getset[] = {{"__doc__", fast_doc, NULL, NULL, NULL}, {NULL}};

static PyType_Slot fast_slots[] = {
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_descr_get, fast_get},
    {Py_tp_getattro, fast_getattro},
    {Py_tp_members, fast_members},
    {Py_tp_getset, fast_getset},
    {Py_tp_traverse, fast_traverse},
    {Py_tp_clear, fast_clear},
    {Py_tp_dealloc, fast_dealloc},
    {0, NULL},
};

static PyType_Spec fast_spec = {
    .name = "tallymark._core.Fast",
    .basicsize = sizeof(Fast),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_METHOD_DESCRIPTOR |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = fast_slots,
};

static PyTypeObject *fast_type;

/* fast(function, names, defaults, is_operation) */
static PyObject *core_fast(PyObject *module, PyObject *args)
{
    PyObject *function, *names, *defaults;
    int is_operation;
    if (!PyArg_ParseTuple(args, "OO!O!p", &function, &PyTuple_Type, &names, &PyTuple_Type, &defaults, &is_operation))
        return NULL;
    if (PyTuple_GET_SIZE(names) != (is_operation ? 6 : 9) || PyTuple_GET_SIZE(defaults) > PyTuple_GET_SIZE(names)) {
        PyErr_SetString(PyExc_TypeError, "fast() does not know a function with these parameters");
        return NULL;
    }
    Fast *self = PyObject_GC_New(Fast, fast_type);
    if (self == NULL)
        return NULL;
    self->vectorcall = fast_call;
    self->function = Py_NewRef(function);
    self->names = Py_NewRef(names);
    self->defaults = Py_NewRef(defaults);
    self->is_operation = is_operation;
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

/* set_up(current_trace_id, done) */
static PyObject *core_set_up(PyObject *module, PyObject *args)
{
    PyObject *variable, *result;
    if (!PyArg_ParseTuple(args, "OO", &variable, &result))
        return NULL;
    Py_XSETREF(current_trace_id, Py_NewRef(variable));
    Py_XSETREF(done, Py_NewRef(result));
    Py_RETURN_NONE;
}

/* check(entries, heap, begins, ends, wanted) -> bytes: 1 for each entry whose checksum is right. begins and ends are
 * int64 offsets into the heap, wanted one byte for each entry. */
static PyObject *core_check(PyObject *module, PyObject *args)
{
    Py_buffer entries, heap, begins, ends, wanted;
    if (!PyArg_ParseTuple(args, "y*y*y*y*y*", &entries, &heap, &begins, &ends, &wanted))
        return NULL;
    Py_ssize_t n = entries.len / ENTRY_SIZE;
    PyObject *result = NULL;
    if (begins.len != n * 8 || ends.len != n * 8 || wanted.len != n) {
        PyErr_SetString(PyExc_ValueError, "check() takes one offset for each entry");
    } else if ((result = PyBytes_FromStringAndSize(NULL, n)) != NULL) {
        unsigned char *right = (unsigned char *)PyBytes_AS_STRING(result);
        const unsigned char *entry = entries.buf, *texts = heap.buf;
        const int64_t *begin = begins.buf, *end = ends.buf;
        for (Py_ssize_t i = 0; i < n; i++, entry += ENTRY_SIZE) {
            right[i] = 0;
            if (!((const unsigned char *)wanted.buf)[i] || begin[i] < 0 || end[i] < begin[i] || end[i] > heap.len)
                continue;
            unsigned char crc[4];
            le(crc, crc32_of(crc32_of(0, entry + 4, ENTRY_SIZE - 4), texts + begin[i], end[i] - begin[i]), 4);
            right[i] = memcmp(crc, entry, 4) == 0;
        }
    }
    PyBuffer_Release(&entries);
    PyBuffer_Release(&heap);
    PyBuffer_Release(&begins);
    PyBuffer_Release(&ends);
    PyBuffer_Release(&wanted);
    return result;
}

/* looks_private(text) -> bool: true for one with NUL, too */
static PyObject *core_looks_private(PyObject *module, PyObject *text)
{
    Py_ssize_t n;
    const char *bytes = PyUnicode_AsUTF8AndSize(text, &n);
    return bytes == NULL ? NULL : PyBool_FromLong(needs_care((const unsigned char *)bytes, n));
}

static PyMethodDef methods[] = {
    {"fast", core_fast, METH_VARARGS, NULL},
    {"set_up", core_set_up, METH_VARARGS, NULL},
    {"check", core_check, METH_VARARGS, NULL},
    {"looks_private", core_looks_private, METH_O, NULL},
    {NULL},
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT, .m_name = "tallymark._core", .m_size = -1, .m_methods = methods,
};

PyMODINIT_FUNC PyInit__core(void)
{
    make_crc_table();
    make_kinds();
    PyObject *module = PyModule_Create(&module_def);
    if (module == NULL)
        return NULL;
    attribute_pool = PyUnicode_InternFromString("_pool");
    milliseconds = PyUnicode_InternFromString("ms");
    lane_type = (PyTypeObject *)PyType_FromSpec(&lane_spec);
    pool_type = (PyTypeObject *)PyType_FromSpec(&pool_spec);
    fast_type = (PyTypeObject *)PyType_FromSpec(&fast_spec);
    if (attribute_pool == NULL || milliseconds == NULL || lane_type == NULL || pool_type == NULL || fast_type == NULL ||
        PyModule_AddObjectRef(module, "LaneState", (PyObject *)lane_type) < 0 ||
        PyModule_AddObjectRef(module, "Pool", (PyObject *)pool_type) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
