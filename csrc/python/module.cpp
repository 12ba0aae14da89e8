// The optional module fulgurite._C: comparisons of long lists that Python would be slow at. It keeps to Python's limited API of
// 3.11 and links nothing of torch, so one file serves every Python and every torch.
#include <Python.h>

#include <new>

#include "python/held_lists.h"

namespace {

using fulgurite::HeldLists;

struct Object {
  PyObject_HEAD HeldLists held;
};

HeldLists& held(PyObject* self) { return reinterpret_cast<Object*>(self)->held; }

bool parse(PyObject* args, PyObject** lists, PyObject** states) {
  return PyArg_ParseTuple(args, "O!O!", &PyList_Type, lists, &PyDict_Type, states);
}

PyObject* make(PyTypeObject* type, PyObject* args, PyObject*) {
  PyObject *lists, *states;
  if (!parse(args, &lists, &states)) return nullptr;
  const auto allocate = reinterpret_cast<allocfunc>(PyType_GetSlot(type, Py_tp_alloc));
  PyObject* const self = allocate(type, 0);
  if (!self) return nullptr;
  HeldLists* const inside = new (&held(self)) HeldLists;
  if (inside->remember(lists, states)) return self;
  Py_DECREF(self);
  return nullptr;
}

void destroy(PyObject* self) {
  PyTypeObject* const type = Py_TYPE(self);
  held(self).~HeldLists();
  reinterpret_cast<freefunc>(PyType_GetSlot(type, Py_tp_free))(self);
  Py_DECREF(type);
}

PyObject* same(PyObject* self, PyObject* args) {
  PyObject *lists, *states;
  bool is_same = false;
  if (!parse(args, &lists, &states) || !held(self).compare(lists, states, &is_same)) return nullptr;
  return PyBool_FromLong(is_same);
}

PyMethodDef methods[] = {
    {"same", same, METH_VARARGS, "same(lists, states): they hold what they held."}, {}};

PyType_Slot slots[] = {
    {Py_tp_doc,
     const_cast<char*>("HeldLists(lists, states): which tensors stand in them, by address.")},
    {Py_tp_new, reinterpret_cast<void*>(make)},
    {Py_tp_dealloc, reinterpret_cast<void*>(destroy)},
    {Py_tp_methods, methods},
    {}};

PyType_Spec spec = {"fulgurite._C.HeldLists", sizeof(Object), 0, Py_TPFLAGS_DEFAULT, slots};

int fill(PyObject* module) {
  PyObject* const type = PyType_FromSpec(&spec);
  if (!type) return -1;
  const int failed = PyModule_AddType(module, reinterpret_cast<PyTypeObject*>(type));
  Py_DECREF(type);
  return failed;
}

PyModuleDef_Slot module_slots[] = {{Py_mod_exec, reinterpret_cast<void*>(fill)}, {}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                          "_C",
                          "Comparisons of long lists.",
                          0,
                          nullptr,
                          module_slots,
                          nullptr,
                          nullptr,
                          nullptr};

}  // namespace

// NOLINTNEXTLINE(bugprone-reserved-identifier): the name that Python looks for
PyMODINIT_FUNC PyInit__C() { return PyModuleDef_Init(&definition); }
