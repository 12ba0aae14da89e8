// A typed handle to a registered operator: the way one operator calls another through the dispatcher.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <string>

namespace fulgurite {

template <class Signature>
c10::TypedOperatorHandle<Signature> op_handle(const char* name) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow((std::string("fulgurite::") + name).c_str(), "")
      .typed<Signature>();
}

}  // namespace fulgurite
