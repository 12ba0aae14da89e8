# `cmake --install build --prefix P`: P/lib/libfulgurite.so, P/include/fulgurite, P/share/cmake/fulgurite (find_package(fulgurite)).
include(CMakePackageConfigHelpers)
install(TARGETS fulgurite EXPORT fulguriteTargets LIBRARY DESTINATION lib)
install(TARGETS fulgurite_torch EXPORT fulguriteTargets)
install(DIRECTORY csrc/include/fulgurite DESTINATION include)
install(EXPORT fulguriteTargets NAMESPACE fulgurite:: DESTINATION share/cmake/fulgurite)
configure_package_config_file(cmake/fulguriteConfig.cmake.in ${CMAKE_BINARY_DIR}/fulguriteConfig.cmake
                              INSTALL_DESTINATION share/cmake/fulgurite)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/fulguriteConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/fulguriteConfig.cmake ${CMAKE_BINARY_DIR}/fulguriteConfigVersion.cmake
        DESTINATION share/cmake/fulgurite)

# The Python package compares this with the torch it runs under before it loads the library.
configure_file(cmake/_build_info.py.in ${FULGURITE_GENERATED_DIR}/_build_info.py @ONLY)
install(FILES ${FULGURITE_GENERATED_DIR}/_build_info.py DESTINATION .)
