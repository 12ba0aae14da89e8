# `cmake --install build --prefix P`: P/lib/torch2.13/libfulgurite.so, P/include/fulgurite, P/share/cmake/fulgurite
# (find_package(fulgurite)). Builds for several torches may be installed into one folder: only the library differs between them.
include(CMakePackageConfigHelpers)
string(REGEX MATCH "^[0-9]+\\.[0-9]+" _torch_minor ${FULGURITE_TORCH_VERSION})
install(TARGETS fulgurite LIBRARY DESTINATION lib/torch${_torch_minor})
install(DIRECTORY csrc/include/fulgurite DESTINATION include)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/fulguriteConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES cmake/fulguriteConfig.cmake ${CMAKE_BINARY_DIR}/fulguriteConfigVersion.cmake DESTINATION share/cmake/fulgurite)

configure_file(cmake/_build_info.py.in ${FULGURITE_GENERATED_DIR}/_build_info.py @ONLY)
install(FILES ${FULGURITE_GENERATED_DIR}/_build_info.py DESTINATION .)
