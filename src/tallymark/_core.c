/* The fast way to record: one call that validates, encodes and writes the usual record.
 *
 * Everything unusual (a series or a metadata key that was not seen before, nesting, values that need care, no room)
 * makes record() return False with nothing changed, and the Python code takes over, which also words the errors. The
 * two must agree on the bytes they write; the tests run with and without this module.
 *
 * Why it needs no lock: from the moment a lane is looked at until the entry is complete, no Python code can run (only
 * exact built-in types are touched, and nothing that the garbage collector tracks is allocated), so with the GIL held
 * no thread, signal handler or finaliser can come in between.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
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

static void put_json_text(Out *out, PyObject *text)
{
    static const char hex[] = "0123456789abcdef";
    Py_ssize_t n;
    const unsigned char *s = (const unsigned char *)utf8(text, &n);
    /* Six bytes for one is the worst that escaping does. */
    if (s == NULL || out->p == NULL || (out->end - out->p - 2) / 6 < n) {
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
    if (value < 0)
        *--p = '-';
    put(out, p, digits + sizeof digits - p);
}

static void put_json_value(Out *out, PyObject *value)
{
    PyTypeObject *type = Py_TYPE(value);
    if (type == &PyUnicode_Type) {
        put_json_text(out, value);
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
        put_json_text(out, key);
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
    if (PyUnicode_CheckExact(text) && PyUnicode_GET_LENGTH(text) > 0 && PyUnicode_GET_LENGTH(text) <= longest)
        bytes = utf8(text, &n);
    if (bytes == NULL) {
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

/* record(free, accepted, series, value, success, metadata, error, trace_id, session_id, timestamp) -> bool */
static PyObject *core_record(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 10) {
        PyErr_SetString(PyExc_TypeError, "record() takes 10 arguments");
        return NULL;
    }
    PyObject *free = args[0], *accepted = args[1], *series = args[2], *success = args[4], *metadata = args[5];
    double value;
    if (PyFloat_CheckExact(args[3])) {
        value = PyFloat_AS_DOUBLE(args[3]);
    } else if (PyLong_CheckExact(args[3])) {
        value = PyLong_AsDouble(args[3]);
        if (value == -1.0 && PyErr_Occurred()) {
            PyErr_Clear();
            Py_RETURN_FALSE;
        }
    } else {
        Py_RETURN_FALSE;
    }
    int outcome = success == Py_True ? 2 : success == Py_False ? 1 : success == Py_None ? 0 : -1;
    int64_t timestamp;
    if (args[9] == Py_None) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        timestamp = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    } else {
        timestamp = PyLong_AsLongLong(args[9]);
        if (timestamp == -1 && PyErr_Occurred())
            return NULL;
    }
    Py_ssize_t n = PyList_CheckExact(free) ? PyList_GET_SIZE(free) : 0;
    if (!isfinite(value) || outcome < 0 || n == 0 || !PyTuple_CheckExact(series))
        Py_RETURN_FALSE;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(series); i++) /* so that looking it up runs no Python code */
        if (!PyUnicode_CheckExact(PyTuple_GET_ITEM(series, i)) && PyTuple_GET_ITEM(series, i) != Py_None)
            Py_RETURN_FALSE;

    LaneState *lane = (LaneState *)PyList_GET_ITEM(free, n - 1);
    if (!PyObject_TypeCheck(lane, lane_type) || lane->at >= lane->end)
        Py_RETURN_FALSE;
    PyObject *number = PyDict_GetItemWithError(lane->series, series);
    if (number == NULL) {
        PyErr_Clear();
        Py_RETURN_FALSE;
    }
    Py_buffer view;
    if (PyObject_GetBuffer(lane->buffer, &view, PyBUF_WRITABLE) < 0) { /* closed: after a fork, say */
        PyErr_Clear();
        Py_RETURN_FALSE;
    }
    unsigned char *base = view.buf, *text = base + lane->heap;
    Py_ssize_t room = lane->size - lane->heap;
    Out out = {text, text + (room < MAX_METADATA_BYTES ? room : MAX_METADATA_BYTES)};
    put_metadata(&out, metadata, accepted);
    Py_ssize_t metadata_bytes = out.p == NULL ? 0 : out.p - text;
    out.end = base + lane->size;
    Py_ssize_t error = put_optional(&out, args[6], MAX_ERROR_LENGTH);
    Py_ssize_t trace = put_optional(&out, args[7], MAX_ID_LENGTH);
    Py_ssize_t session = put_optional(&out, args[8], MAX_ID_LENGTH);
    if (out.p != NULL) {
        uint64_t bits;
        unsigned char entry[ENTRY_SIZE], *p = entry + 4;
        memcpy(&bits, &value, 8);
        *p++ = KIND_RECORD;
        *p++ = (unsigned char)outcome;
        p = le(p, (uint64_t)metadata_bytes, 2);
        p = le(p, (uint64_t)error, 2);
        p = le(p, (uint64_t)trace, 2);
        p = le(p, (uint64_t)session, 2);
        p = le(p, 0, 2);
        p = le(p, (uint64_t)PyLong_AsLong(number), 4);
        p = le(p, (uint64_t)lane->heap, 4);
        p = le(p, (uint64_t)timestamp, 8);
        le(p, bits, 8);
        uint32_t crc = crc32_of(0, entry + 4, ENTRY_SIZE - 4);
        le(entry, crc32_of(crc, text, out.p - text), 4);
        memcpy(base + lane->at, entry, ENTRY_SIZE);
        lane->at += ENTRY_SIZE;
        lane->heap = out.p - base;
    }
    PyBuffer_Release(&view);
    return PyBool_FromLong(out.p != NULL);
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

static PyMethodDef methods[] = {
    {"record", (PyCFunction)(void (*)(void))core_record, METH_FASTCALL, NULL},
    {"check", core_check, METH_VARARGS, NULL},
    {NULL},
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT, .m_name = "tallymark._core", .m_size = -1, .m_methods = methods,
};

PyMODINIT_FUNC PyInit__core(void)
{
    make_crc_table();
    PyObject *module = PyModule_Create(&module_def);
    if (module == NULL)
        return NULL;
    lane_type = (PyTypeObject *)PyType_FromSpec(&lane_spec);
    if (lane_type == NULL || PyModule_AddObjectRef(module, "LaneState", (PyObject *)lane_type) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
