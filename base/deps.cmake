# Libraries that are not ours.
#
#   SL_BARE     build what a machine with a bare CUDA toolkit can: what lacks a
#               library is left out, and configure says so.  No pkg-config: add
#               folders with CMAKE_PREFIX_PATH
#   SL_WITHOUT  names (OPENBLAS, CJSON, ...) to treat as missing under SL_BARE
#
# sl_dep(NAME MODULES m... HEADER h LIBRARIES l...) gives the target
# PkgConfig::NAME and NAME_FOUND.  Missing is an error unless SL_BARE.
# sl_leave_out(WHAT NAME...) sets SL_LEFT_OUT to whether one of NAME is missing,
# and then notes it for the summary.
option(SL_BARE "Leave out what lacks a library" OFF)
set(SL_WITHOUT "" CACHE STRING "Libraries to leave out under SL_BARE")

if(NOT SL_BARE)
  find_package(PkgConfig REQUIRED)
endif()

macro(sl_dep name)
  cmake_parse_arguments(DEP "" "HEADER" "MODULES;LIBRARIES" ${ARGN})
  if(NOT SL_BARE)
    if(NOT TARGET PkgConfig::${name})
      pkg_check_modules(${name} REQUIRED IMPORTED_TARGET GLOBAL ${DEP_MODULES})
    endif()
    set(${name}_FOUND TRUE)
  else()
    sl_dep_bare(${name} "${DEP_HEADER}" "${DEP_LIBRARIES}")
  endif()
endmacro()

function(sl_dep_bare name header libraries)
  set(found TRUE)
  set(paths)
  find_path(SL_${name}_INCLUDE ${header} PATH_SUFFIXES openblas openblas-pthread)
  if(NOT SL_${name}_INCLUDE OR name IN_LIST SL_WITHOUT)
    set(found FALSE)
  endif()
  foreach(library ${libraries})
    find_library(SL_${name}_${library} ${library} PATH_SUFFIXES openblas-pthread)
    if(SL_${name}_${library})
      list(APPEND paths ${SL_${name}_${library}})
    else()
      set(found FALSE)
    endif()
  endforeach()
  if(found AND NOT TARGET PkgConfig::${name})
    add_library(PkgConfig::${name} INTERFACE IMPORTED GLOBAL)
    target_include_directories(PkgConfig::${name} INTERFACE ${SL_${name}_INCLUDE})
    target_link_libraries(PkgConfig::${name} INTERFACE ${paths})
  endif()
  set(${name}_FOUND ${found} PARENT_SCOPE)
endfunction()

macro(sl_leave_out what)
  set(SL_LEFT_OUT FALSE)
  foreach(name ${ARGN})
    if(NOT ${name}_FOUND)
      set(SL_LEFT_OUT TRUE)
      message(STATUS "Left out: ${what}, for want of ${name}")
      break()
    endif()
  endforeach()
endmacro()
