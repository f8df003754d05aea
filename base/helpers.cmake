# sl_module(NAME SOURCES a.c b.c [DEPS target...]) : a static library that
# others include as "folder/file.h" from the project's root.
#
# sl_test(NAME SOURCES a_test.c [DEPS target...] [TIMEOUT s] [LABELS l...]) : a
# cmocka program that CTest runs; exit code 77 counts as skipped.
set(SL_WARNINGS -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion)
if(SL_WERROR)
  list(APPEND SL_WARNINGS -Werror)
endif()

function(sl_target_defaults name)
  target_include_directories(${name} PUBLIC ${CMAKE_SOURCE_DIR})
  target_compile_options(${name} PRIVATE $<$<COMPILE_LANGUAGE:C>:${SL_WARNINGS} -Wstrict-prototypes>
                                         $<$<COMPILE_LANGUAGE:CXX>:${SL_WARNINGS}>)
  target_link_libraries(${name} PUBLIC Threads::Threads m)
endfunction()

function(sl_module name)
  cmake_parse_arguments(A "" "" "SOURCES;DEPS" ${ARGN})
  add_library(${name} STATIC ${A_SOURCES})
  sl_target_defaults(${name})
  target_link_libraries(${name} PUBLIC ${A_DEPS})
endfunction()

function(sl_program name)
  cmake_parse_arguments(A "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${A_SOURCES})
  sl_target_defaults(${name})
  target_link_libraries(${name} PRIVATE ${A_DEPS})
endfunction()

function(sl_test name)
  cmake_parse_arguments(A "" "TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
  if(NOT TARGET PkgConfig::CMOCKA) # only under SL_BARE: a name, for what refers to it
    add_executable(${name} EXCLUDE_FROM_ALL ${A_SOURCES})
    add_test(NAME ${name} COMMAND ${name})
    set_tests_properties(${name} PROPERTIES DISABLED ON)
    return()
  endif()
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 180)
  endif()
  add_executable(${name} ${A_SOURCES})
  sl_target_defaults(${name})
  target_link_libraries(${name} PRIVATE ${A_DEPS} PkgConfig::CMOCKA)
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${CMAKE_BINARY_DIR})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${A_TIMEOUT} SKIP_RETURN_CODE 77
                                          LABELS "${A_LABELS}")
endfunction()

# The test may let its own allocations fail: see base/test_alloc.h.
function(sl_test_wrap_allocations name)
  if(NOT TARGET ${name})
    return()
  endif()
  target_link_options(${name} PRIVATE -Wl,--wrap=malloc,--wrap=calloc,--wrap=reallocarray,--wrap=strdup)
endfunction()
